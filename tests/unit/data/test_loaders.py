# SPDX-License-Identifier: Apache-2.0
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from opendino.data.augment import Crops, CropsConfig, MultiCrop
from opendino.data.collate import Skipped, collate, normalize
from opendino.data.datasets import open_dataset
from opendino.data.loaders import BadImages, LoaderConfig, pretrain_loader, require_readable
from opendino.data.masking import MaskConfig, batch_masks, draw_masks, mask_shares
from opendino.data.samplers import InfiniteSampler, keyed_rng
from opendino.errors import ConfigError, DataError

CROPS = CropsConfig(global_size=16, local_size=8, local_number=2)


def feed(source, batch_size=4, **options):
    dataset = open_dataset(source) if not hasattr(source, "image") else source
    options = {"seed": 1, **options}
    return pretrain_loader(dataset, options.pop("crops", CROPS), MaskConfig(), 4, batch_size, **options)


def take(loader, count):
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def raises(error):
    raise error


def spoil(folder, *numbers):
    for path in folder.rglob("*.png"):
        if int(path.stem) in numbers:
            path.write_bytes(path.read_bytes()[:60])


def test_a_batch_is_what_its_parts_make(image_folder):
    """The second batch, put together by hand from the sampler, the crops and the masks."""
    dataset = open_dataset(image_folder)
    batch = take(feed(image_folder), 2)[1]
    ids = InfiniteSampler(6, seed=1).at(np.arange(4, 8))
    assert batch.ids.tolist() == ids.tolist()
    crop = MultiCrop(CROPS)
    for row, index in enumerate(ids.tolist()):
        views = crop(dataset.image(index), keyed_rng(1, "crops", 4 + row))
        for view, crops in ((views.globals, batch.global_crops), (views.locals, batch.local_crops)):
            for number, pixels in enumerate(view):
                expected = normalize(
                    torch.from_numpy(pixels.copy())[None], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
                )
                torch.testing.assert_close(crops[number * 4 + row][None], expected)
    shares = mask_shares(8, MaskConfig(), keyed_rng(1, "mask shares", 1))
    rngs = [keyed_rng(1, f"masks of crop {crop}", 4 + row) for crop in (0, 1) for row in range(4)]
    masks = draw_masks(shares, (4, 4), MaskConfig(), rngs)
    assert torch.equal(batch.masks, masks.masks)
    assert torch.equal(batch.mask_indices, masks.indices)


def test_an_epoch_shows_every_image_once(image_folder):
    batches = take(feed(image_folder, batch_size=3), 4)
    for first in (0, 2):
        assert sorted(torch.cat([batch.ids for batch in batches[first : first + 2]]).tolist()) == list(range(6))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_of_one(image_folder, world):
    alone = take(feed(image_folder), 3)
    ranks = [take(feed(image_folder, rank=rank, world=world), 3) for rank in range(world)]
    for step, whole in enumerate(alone):
        parts = [batches[step] for batches in ranks]
        assert torch.equal(torch.stack([part.ids for part in parts], dim=1).flatten(), whole.ids)
        first_crops = [part.global_crops[: part.images] for part in parts]
        assert torch.equal(torch.stack(first_crops, dim=1).flatten(0, 1), whole.global_crops[:4])
        masks = torch.stack([part.masks.unflatten(0, (2, -1)) for part in parts], dim=2).flatten(0, 2)
        assert torch.equal(masks, whole.masks)


def test_fixed_views_come_again_every_so_many_epochs(image_folder):
    """Two sets of crops for each of six images, with two images a step: epochs 0 and 2 are equal, 1 and 3 too."""

    def crops_of(batch, image):
        return batch.global_crops[[image, image + batch.images]]

    batches = take(feed(image_folder, batch_size=2, crops=replace(CROPS, fixed_views=2)), 12)
    shown = {}
    for step, batch in enumerate(batches):
        for image, index in enumerate(batch.ids.tolist()):
            shown[step // 3, index] = crops_of(batch, image)
    for index in range(6):
        assert torch.equal(shown[0, index], shown[2, index])
        assert torch.equal(shown[1, index], shown[3, index])
        assert not torch.equal(shown[0, index], shown[1, index])


def test_seeds_are_different_runs(image_folder):
    a, b = take(feed(image_folder, seed=1), 1)[0], take(feed(image_folder, seed=2), 1)[0]
    assert not torch.equal(a.global_crops, b.global_crops)


def test_no_local_crops(image_folder):
    batch = take(feed(image_folder, crops=CropsConfig(global_size=16, local_number=0)), 1)[0]
    assert len(batch.local_crops) == 0
    assert batch.global_crops.shape == (8, 3, 16, 16)


def test_waiting_is_measured(image_folder):
    loader = feed(image_folder)
    next(loader)
    first = loader.waited
    assert first > 0
    next(loader)
    assert loader.waited > first
    assert loader.step == 2
    loader.close()


@pytest.mark.parametrize(
    ("thread", "workers", "wanted"),
    [("auto", 1, False), ("never", 1, False), ("always", 0, False), ("always", 1, True)],
)
def test_a_thread_takes_batches_out_where_there_are_workers(image_folder, thread, workers, wanted):
    loader = feed(image_folder, workers=workers, config=LoaderConfig(thread=thread))
    next(loader)
    running = [one.name for one in threading.enumerate()]
    assert ("opendino batches" in running) is wanted
    loader.close()
    assert "opendino batches" not in [one.name for one in threading.enumerate()]


def test_the_global_generator_is_left_alone(image_folder):
    state = torch.get_rng_state()
    take(feed(image_folder), 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_named_and_counted(image_folder, workers, caplog):
    spoil(image_folder, 1, 4)
    loader = feed(image_folder, workers=workers, config=LoaderConfig(max_bad_rate=0.9))
    with caplog.at_level(logging.WARNING, logger="opendino"):
        logging.getLogger("opendino").propagate = True
        batches = take(loader, 6)
    dataset = open_dataset(image_folder)
    bad = [i for i in range(6) if any(f"/{n}.png" in dataset.identify(i) for n in (1, 4))]
    assert not set(bad) & set(torch.cat([batch.ids for batch in batches]).tolist())
    skipped = [one for batch in batches for one in batch.skipped]
    assert {one.index for one in skipped} == set(bad)
    assert all("cannot be decoded" in one.reason for one in skipped)
    assert loader.bad.failed == len(skipped)
    assert loader.bad.read == 6 * 4 + len(skipped)
    assert len([record for record in caplog.records if "skipped" in record.message]) == 2  # each once


def test_too_many_bad_images_stop_the_run(image_folder):
    spoil(image_folder, 1)
    loader = feed(image_folder, config=LoaderConfig(min_bad_count=0))
    with pytest.raises(
        DataError, match=r"1 of \d images read so far cannot be decoded, more than .*=0.01: .*1.png.*=0.\d"
    ):
        take(loader, 100)
    loader.close()


def test_an_image_that_fails_again_is_still_one(image_folder):
    """Three of 307 files are under one in a hundred, however often they come by."""
    spoil(image_folder, 1)
    loader = feed(image_folder, config=LoaderConfig(max_bad_rate=0.2, min_bad_count=0))
    take(loader, 40)
    assert loader.bad.failed > 11
    loader.close()


def test_the_rate_is_a_share_after_a_first_few():
    def batch(images, failures, first=0):
        masks = batch_masks(2 * images, (2, 2), MaskConfig(probability=0.0), np.random.default_rng(0))
        views = Crops([np.zeros((1, 2, 2), np.uint8)] * 2, [])
        skipped = [Skipped(i, "x", f"reason {i}") for i in range(first, first + failures)]
        return collate([views] * images, masks, list(range(images)), skipped)

    bad = BadImages("set", 0.1, 5, images=1000)
    bad.add(batch(4, 5))  # five of nine, but five are tolerated
    bad.add(batch(96, 5, first=5))  # ten of 110
    bad.add(batch(2, 2))  # two of them again
    with pytest.raises(DataError, match=r"set: 12 of 118 images.*reason 0; reason 1; reason 2; repair"):
        bad.add(batch(2, 2, first=10))


def test_nothing_readable_is_said_at_once(image_folder):
    spoil(image_folder, *range(6))
    with pytest.raises(DataError, match=r"images: none of the 6 images tried can be read, such as .*0.png"):
        feed(image_folder)


def test_one_readable_image_is_enough_to_begin(image_folder):
    spoil(image_folder, *range(5))
    require_readable(open_dataset(image_folder))
    batch = take(feed(image_folder, config=LoaderConfig(max_bad_rate=1.0)), 1)[0]
    assert len(set(batch.ids.tolist())) == 1


@pytest.mark.parametrize(("workers", "thread"), [(0, "never"), (1, "never"), (1, "always")])
def test_an_error_of_a_worker_is_a_sentence(image_folder, workers, thread):
    dataset = open_dataset(image_folder)
    dataset.label = lambda index: None
    broken = feed(dataset, workers=workers, config=LoaderConfig(thread=thread))
    broken._loader.dataset.sizes.at = lambda step: 1 / 0
    with pytest.raises(
        DataError, match=r"^the batch of step 0 cannot be made \(ZeroDivisionError: division by zero\)$"
    ):
        next(broken)


@pytest.mark.parametrize("thread", ["never", "always"])
def test_a_killed_worker_is_a_sentence(image_folder, thread):
    loader = feed(image_folder, workers=1, config=LoaderConfig(thread=thread))
    loader._loader.dataset.sizes.at = lambda step: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(DataError, match=r"no data came for step 0 \(.*worker.*loader\.workers"):
        next(loader)
    loader.close()


def test_what_goes_wrong_on_the_way_to_the_device_is_told_as_it_is(image_folder, monkeypatch):
    """Memory of a GPU that runs out is a RuntimeError too; the workers are not to be blamed for it, and are ended."""
    monkeypatch.setattr("opendino.data.ahead.OnItsWay", lambda *_: raises(torch.OutOfMemoryError("out of memory")))
    loader = feed(image_folder, workers=1, config=LoaderConfig(thread="always"))
    before = multiprocessing.active_children()
    with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory$"):
        next(loader)
    assert set(multiprocessing.active_children()) <= set(before)


def test_a_thread_that_cannot_begin_leaves_no_workers(image_folder, monkeypatch):
    monkeypatch.setattr("opendino.data.loaders.bring_to", lambda _: raises(RuntimeError("no stream")))
    loader = feed(image_folder, workers=1, config=LoaderConfig(thread="always"))
    before = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="no stream"):
        next(loader)
    assert len(multiprocessing.active_children()) == len(before) + 1
    loader.close()
    assert set(multiprocessing.active_children()) <= set(before)


@pytest.mark.parametrize("thread", ["never", "always"])
def test_a_closed_loader_goes_on_where_it_was(image_folder, thread):
    whole = take(feed(image_folder), 3)
    loader = feed(image_folder, workers=1, config=LoaderConfig(thread=thread))
    for expected in whole:
        assert torch.equal(next(loader).global_crops, expected.global_crops)
        loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_many_channels_and_sixteen_bits_travel_as_floats(tmp_path, workers):
    for number in range(4):
        np.save(
            tmp_path / f"{number}.npy", np.random.default_rng(number).integers(0, 65536, (20, 30, 5)).astype(np.uint16)
        )
    dataset = open_dataset(tmp_path, channels=5)
    batch = take(feed(dataset, workers=workers), 1)[0]
    assert batch.global_crops.shape == (8, 5, 16, 16)
    assert batch.global_crops.dtype == torch.float32
    assert batch.global_crops.abs().max() <= 2  # (0..1 - 0.5) / 0.25
    assert batch.global_crops.std() > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": CropsConfig(global_size=18)}, "crops.global_size = 18"),
        ({"batch_size": 5, "world": 2}, "batch_size = 5 cannot be shared equally by 2 processes"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_settings_that_do_not_fit(image_folder, options, message):
    with pytest.raises(ConfigError, match=message):
        feed(image_folder, **options)


@pytest.mark.parametrize("wrong", [{"workers": -2}, {"prefetch": 0}, {"max_bad_rate": 1.5}, {"min_bad_count": -1}])
def test_loader_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"loader.{next(iter(wrong))}"):
        LoaderConfig(**wrong)


WAYS = [("pillow", "worker"), ("pillow", "device"), ("fast", "worker"), ("fast", "device")]


def jpegs(folder, oracle):
    """Six JPEG files, one of them in CMYK and one of them broken."""
    folder.mkdir()
    for number in range(6):
        picture = oracle.picture("RGB", 40 + number, 50 - number)
        picture = picture.convert("CMYK") if number == 2 else picture
        picture.save(folder / f"{number}.jpg")
    broken = folder / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:700])
    return folder


def same(one, other):
    names = ("global_crops", "local_crops", "masks", "ids")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names) and one.slow == other.slow


@pytest.mark.parametrize(("decoder", "photometric"), WAYS)
def test_batches_are_equal_with_any_workers_and_after_a_resume(tmp_path, oracle, decoder, photometric):
    if decoder == "fast":
        pytest.importorskip("simplejpeg", reason="the extra `fast` is not installed")
        pytest.importorskip("cv2", reason="the extra `fast` is not installed")
    folder = jpegs(tmp_path / "images", oracle)
    config = LoaderConfig(decoder=decoder, photometric=photometric, max_bad_rate=0.9)
    crops = CropsConfig(global_size=32, local_size=16, local_number=2)
    alone = feed(folder, crops=crops, config=config)
    batches = take(alone, 5)
    for workers, thread in ((1, "never"), (3, "auto"), (2, "always")):
        by_others = replace(config, thread=thread)
        again = take(feed(folder, crops=crops, config=by_others, workers=workers), 5)
        assert all(map(same, batches, again))
    assert all(map(same, batches[3:], take(feed(folder, crops=crops, config=config, start_step=3, workers=1), 2)))
    assert alone.bad.failed == len([one for batch in batches for one in batch.skipped]) > 0
    of_cmyk = sum((batch.ids == 2).sum().item() for batch in batches)
    assert alone.slow == (of_cmyk if decoder == "fast" else 0)
    assert of_cmyk > 0


@pytest.mark.parametrize(("decoder", "photometric"), WAYS[1:])
def test_every_way_shows_the_same_but_for_rounding(tmp_path, oracle, decoder, photometric):
    if decoder == "fast":
        pytest.importorskip("simplejpeg", reason="the extra `fast` is not installed")
        pytest.importorskip("cv2", reason="the extra `fast` is not installed")
    folder = jpegs(tmp_path / "images", oracle)
    crops = CropsConfig(global_size=32, local_size=16, local_number=2, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    plain, other = (
        take(feed(folder, crops=crops, config=config), 4)
        for config in (
            LoaderConfig(max_bad_rate=0.9, photometric="worker"),
            LoaderConfig(max_bad_rate=0.9, decoder=decoder, photometric=photometric),
        )
    )
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.masks, two.masks)
        assert one.skipped == two.skipped
        assert (one.global_crops - two.global_crops).abs().mean() < 1.8
        assert (one.local_crops - two.local_crops).abs().mean() < 1.8


def test_the_log_says_once_who_decodes(image_folder, caplog):
    with caplog.at_level(logging.INFO, logger="opendino"):
        logging.getLogger("opendino").propagate = True
        take(feed(image_folder), 2)
    said = [record.getMessage() for record in caplog.records if "decoder" in record.getMessage()]
    assert said == ["decoder pillow; colours by the workers"]
