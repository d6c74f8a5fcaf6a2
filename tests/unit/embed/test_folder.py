# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from opendino.checkpoint.hub import load_backbone
from opendino.checkpoint.weights import save_weights
from opendino.data.datasets import open_dataset
from opendino.embed import EmbedConfig, Embedder, FeatureSettings, embed, read
from opendino.embed import folder as folders
from opendino.embed.reading import skipped
from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.stages.engines import Engine


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1, num_register_tokens=1)
    return str(save_weights(backbone, tmp_path_factory.mktemp("model") / "w"))


@pytest.fixture
def odd_folder(tmp_path, picture_folder):
    """Real pictures, and what people have in their folders besides."""
    root = tmp_path / "odd"
    shutil.copytree(picture_folder, root)
    (root / "class0" / "aa.jpg").write_bytes(b"not an image")
    (root / "class0" / "empty.png").write_bytes(b"")
    whole = (root / "class0" / "00.png").read_bytes()
    (root / "class1" / "half.png").write_bytes(whole[: len(whole) // 2])
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(root / "class1" / "moving.gif", save_all=True, append_images=frames[1:])
    (root / "notes.txt").write_text("no image")
    return root


def config(**settings):
    return EmbedConfig(**({"rows": 16, "batch_size": 5, "size": 16, "device": "cpu", "decoder": "pillow"} | settings))


def test_every_image_once_and_the_rest_listed(weights, odd_folder, tmp_path):
    done = embed(weights, str(odd_folder), tmp_path / "out", config(features=("cls", "registers", "patches")))
    assert (done.images, done.skipped, done.made) == (41, 3, True)
    table, features = read(done.folder)
    lost = [one["row"] for one in skipped(done.folder)]
    assert sorted([*table["row"].to_pylist(), *lost]) == list(range(44))
    dataset = open_dataset(odd_folder)
    assert table["path"].to_pylist() == [dataset.identify(row) for row in table["row"].to_pylist()]
    assert {path.rpartition("/")[2] for path in (one["path"] for one in skipped(done.folder))} == {
        "aa.jpg",
        "empty.png",
        "half.png",
    }
    # Against the model itself, one image at a time.
    alone = Embedder(load_backbone(weights), FeatureSettings(features=("cls", "registers", "patches"), size=16))
    for place in (0, 17, 40):
        wanted = alone.of([dataset.image(int(table["row"][place].as_py()))])[0]
        for name, one in wanted.items():
            np.testing.assert_allclose(features[name][place], one.numpy(), atol=1e-5)
    assert set(table["label"].to_pylist()) == {"class0", "class1", "class2", "class3"}
    assert table["width"].to_pylist().count(20) == 1
    assert not embed(weights, str(odd_folder), tmp_path / "out", config(features=("cls", "registers", "patches"))).made


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_interruptions_and_formats_change_no_number(weights, picture_folder, tmp_path, monkeypatch, kind):
    whole = embed(weights, str(picture_folder), tmp_path / "whole", config()).folder
    settings = config(format=kind)
    original = folders._Shard._write
    calls = []

    def stops(self, part, *rest):
        calls.append(part)
        if len(calls) % 2:
            raise KeyboardInterrupt
        original(self, part, *rest)

    monkeypatch.setattr(folders._Shard, "_write", stops)
    for _ in range(10):
        try:
            done = embed(weights, str(picture_folder), tmp_path / kind, settings)
            break
        except KeyboardInterrupt:
            continue
    assert len(calls) == 6  # three shards, each stopped once
    first, second = read(whole), read(done.folder)
    assert first[0].equals(second[0])
    np.testing.assert_array_equal(first[1]["cls"], second[1]["cls"])


@pytest.mark.timeout(900)  # two processes that import torch, on a machine that may be busy
def test_processes_change_no_byte(weights, picture_folder, tmp_path):
    for workers in (1, 2):
        embed(weights, str(picture_folder), tmp_path / str(workers), config(engine=Engine(workers=workers)))
    one, two = (read(tmp_path / name)[1]["cls"] for name in "12")
    np.testing.assert_array_equal(one, two)
    one, two = (json.loads((tmp_path / name / "done.json").read_text())["outputs"] for name in "12")
    assert one == two


def test_threads_and_memory_change_no_byte(weights):
    """What differs between processes: how many threads they have, and where their arrays lie."""
    embedder = Embedder(load_backbone(weights), FeatureSettings(size=16, device="cpu"))
    images, before, found = torch.randn(5, 3, 16, 16), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for offset in range(4):
                held = torch.empty(images.numel() + offset)[offset:].view_as(images)
                found.append(embedder(held.copy_(images))["cls"])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


def test_grids_of_other_shapes_are_lists_with_their_sides(weights, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for name, size in (("a", (40, 20)), ("b", (20, 40)), ("c", (30, 30))):
        Image.new("RGB", size, "gray").save(root / f"{name}.png")
    done = embed(weights, str(root), tmp_path / "out", config(features=("patches",), fit="whole", dtype="float16"))
    table = pq.read_table(done.folder / "part-00000.parquet")
    assert list(zip(table["patches_h"].to_pylist(), table["patches_w"].to_pylist(), strict=True)) == [
        (2, 4),
        (4, 2),
        (4, 4),
    ]
    assert [len(one) for one in table["patches"].to_pylist()] == [8 * 64, 8 * 64, 16 * 64]
    with pytest.raises(DataError, match="another shape for each image"):
        read(done.folder)


def test_other_work_is_not_removed_unasked(weights, picture_folder, odd_folder, tmp_path):
    out = tmp_path / "out"
    embed(weights, str(picture_folder), out, config())
    with pytest.raises(ConfigError, match="dtype=float32"):
        embed(weights, str(picture_folder), out, config(dtype="float16"))
    with pytest.raises(ConfigError, match="data"):
        embed(weights, str(odd_folder), out, config())
    assert embed(weights, str(odd_folder), out, config(overwrite=True)).images == 41
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not remove")
    with pytest.raises(DataError, match="holds files and no plan of what wrote them"):
        embed(weights, str(picture_folder), tmp_path / "mine", config())


def test_a_folder_begun_before_a_setting_was_there_is_continued(weights, picture_folder, tmp_path):
    out = tmp_path / "out"
    embed(weights, str(picture_folder), out, config())
    # Older plans do not know of merged patches.
    assert "merge" not in json.loads((out / "plan.json").read_text())["parameters"]
    assert not embed(weights, str(picture_folder), out, config()).made
    with pytest.raises(ConfigError, match=r"otherwise \(merge=0\.0\)"):
        embed(weights, str(picture_folder), out, config(merge=0.25))
    embed(weights, str(picture_folder), out, config(merge=0.25, overwrite=True))
    with pytest.raises(ConfigError, match=r"otherwise \(merge=0\.25\)"):
        embed(weights, str(picture_folder), out, config())


@pytest.mark.parametrize("place", ["features", "deep/features", "."])
def test_features_among_the_images_are_refused(weights, odd_folder, place):
    with pytest.raises(ConfigError, match=r"lies in .*name a folder beside it"):
        embed(weights, str(odd_folder), odd_folder / place, config())
    assert not (odd_folder / "features").exists()


def test_nothing_readable_is_an_error(weights, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of 1 images could be read"):
        embed(weights, str(root), tmp_path / "out", config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "give 1 or more"),
        ({"format": "npy", "fit": "whole", "features": ("patches",)}, "use format=parquet"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        EmbedConfig(**settings)


def test_the_fast_decoder_sees_the_same_pictures(weights, picture_folder, tmp_path):
    """JPEG and PNG, one in CMYK that is left to Pillow, one broken: rows and sizes equal, features but for rounding."""
    pytest.importorskip("simplejpeg", reason="the extra `fast` is not installed")
    pytest.importorskip("cv2", reason="the extra `fast` is not installed")
    root = tmp_path / "pictures"
    shutil.copytree(picture_folder, root)
    for number, path in enumerate(sorted(root.rglob("*.png"))[:9]):
        picture = Image.open(path).resize((300, 200), Image.Resampling.BICUBIC)
        (picture.convert("CMYK") if number == 3 else picture).save(path.with_suffix(".jpg"), quality=95)
    broken = sorted(root.rglob("*.jpg"))[1]
    broken.write_bytes(broken.read_bytes()[:900])
    found = {}
    for decoder in ("pillow", "fast"):
        done = embed(weights, str(root), tmp_path / decoder, config(decoder=decoder, normalize=True))
        assert done.skipped == 1
        found[decoder] = read(done.folder)
    (table, features), (other, close) = found.values()
    assert table.equals(other)
    assert (features["cls"] * close["cls"]).sum(axis=1).min() > 0.999
    assert not np.array_equal(features["cls"], close["cls"])
    with pytest.raises(ConfigError, match=r"holds features that were made otherwise.*decoder=pillow"):
        embed(weights, str(root), tmp_path / "pillow", config(decoder="fast", normalize=True))
