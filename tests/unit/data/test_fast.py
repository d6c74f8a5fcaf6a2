# SPDX-License-Identifier: Apache-2.0
"""Each operation against Pillow's, then whole views; differences are counted in 8-bit levels."""

import sys

import numpy as np
import pytest
from PIL import Image

from opendino.data import fast, photometric
from opendino.data.augment import CropsConfig, Look, MultiCrop, show
from opendino.data.crops import Box
from opendino.data.datasets import open_dataset
from opendino.data.samplers import keyed_rng
from opendino.data.transforms import EvalTransform
from opendino.errors import ConfigError

pytest.importorskip("simplejpeg", reason="the extra `fast` is not installed")
pytest.importorskip("cv2", reason="the extra `fast` is not installed")

SMALL = CropsConfig(global_size=48, local_size=24, local_number=3)


@pytest.fixture(autouse=True)
def _one_thread():
    fast.keep_to_one_thread()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, oracle):
    """Smooth colours with edges and some noise, as JPEG: a picture between a photograph and the worst case."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(4):
        picture = oracle.picture("RGB", 20 + number, 30).resize((200 - 7 * number, 150), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=92)
    return open_dataset(folder)


def levels(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(24, 24), (32, 51)])
@pytest.mark.parametrize(
    ("box", "mixed"), [((0, 0, 90, 120), ()), ((3, 5, 61, 47), (51,)), ((10, 20, 9, 13), ()), ((0, 7, 90, 4), (24, 51))]
)
def test_resizing_is_pillows_but_for_rounding(oracle, mode, box, mixed, size):
    """Where one side shrinks and the other grows, Pillow may do the rows first: hard edges are clipped otherwise."""
    box = Box(*box)
    image = oracle.picture(mode)
    pixels = np.array(image).reshape(90, 120, -1)
    cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = np.asarray(cut.resize(size[::-1], Image.Resampling.BICUBIC)).reshape(*size, -1)
    found = fast.resize_fast(pixels, *size, box)
    assert levels(found, expected).max() <= (25 if size[1] in mixed else 2)
    assert levels(found, expected).mean() < (0.5 if size[1] in mixed else 0.01)


OPERATIONS = [
    ("brightness", fast.brightness_fast, photometric.brightness_image, (0.6, 1.0, 1.37), 1, 0.01),
    ("contrast", fast.contrast_fast, photometric.contrast_image, (0.6, 1.0, 1.37), 1, 0.05),
    ("saturation", fast.saturation_fast, photometric.saturation_image, (0.8, 1.0, 1.2), 1, 0.35),
    ("hue", fast.hue_fast, photometric.hue_image, (-0.1, -0.033, 0.05, 0.1), 13, 1.3),
    ("grey", lambda p, _: fast.grey_fast(p), lambda p, _: photometric.grey_image(p), (0.0,), 1, 0.02),
]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("name", "ours", "pillows", "factors", "worst", "mean"), OPERATIONS)
def test_colours_are_pillows_but_for_rounding(oracle, name, ours, pillows, factors, worst, mean, mode):
    image = oracle.picture(mode)
    for factor in factors:
        found = levels(ours(np.array(image), factor), pillows(image, factor))
        assert found.max() <= worst, (name, factor)
        assert found.mean() <= mean, (name, factor)


def test_no_turn_of_the_hue_changes_nothing(oracle):
    pixels = np.array(oracle.picture())
    assert fast.hue_fast(pixels, 0.003) is pixels  # less than a step of 1/255


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("sigma", [0.1, 0.45, 0.8, 1.3, 2.0])
def test_blur_is_the_other_one_within_two_levels(oracle, mode, sigma):
    pixels = np.array(oracle.picture(mode))
    planes = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    expected = photometric.blur(planes, sigma)
    found = fast.blur_fast(pixels, sigma)
    found = found[None] if mode == "L" else found.transpose(2, 0, 1)
    assert levels(found, expected).max() <= 2
    assert levels(found, expected).mean() <= 0.5


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_flip_and_solarisation_are_exact(oracle, mode):
    image = oracle.picture(mode, 40, 40)
    look = Look(40, Box(0, 0, 40, 40), True, (), (1.0, 1.0, 1.0, 0.0), False, 0.0, True)
    found = fast.show_fast(np.array(image).reshape(40, 40, -1), look)
    np.testing.assert_array_equal(found, show(image, look))


def test_views_are_pillows_but_for_rounding(photographs):
    crops, differences = MultiCrop(SMALL), []
    for index in range(len(photographs)):
        for seed in range(10):
            one = crops(photographs.image(index), keyed_rng(seed, "crops", index))
            other = fast.fast_views(photographs, index, crops, keyed_rng(seed, "crops", index))
            assert not other.slow
            for a, b in zip([*one.globals, *one.locals], [*other.globals, *other.locals], strict=True):
                assert a.shape == b.shape
                differences.append((levels(a, b).mean(), a.mean() - b.mean(), a.std() - b.std()))
    away, brighter, livelier = np.array(differences).T
    assert away.mean() < 1.0
    assert away.max() < 6
    assert abs(brighter.mean()) < 0.5
    assert abs(livelier.mean()) < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, oracle, seed):
    picture = oracle.picture("RGB", 40, 60).resize((1200, 800), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "large.jpg", quality=92)
    dataset = open_dataset(tmp_path)
    config = CropsConfig(global_size=56, local_size=28, local_number=2, jitter=0.0, gray=0.0, solarize=0.0)
    crops = MultiCrop(config)
    one = crops(dataset.image(0), np.random.default_rng(seed))
    photo = fast.photo_of(dataset, 0)
    decoded = []
    original = type(photo).pixels

    def spy(self, reduction=1):
        decoded.append(reduction)
        return original(self, reduction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(photo), "pixels", spy)
        other = fast.fast_views(dataset, 0, crops, np.random.default_rng(seed))
    assert decoded[0] in (2, 4)
    for a, b in zip([*one.globals, *one.locals], [*other.globals, *other.locals], strict=True):
        assert levels(a, b).mean() < 2.0


def test_what_it_cannot_take_is_made_by_pillow(tmp_path, oracle):
    oracle.picture("RGB").convert("CMYK").save(tmp_path / "a.jpg")
    dataset, crops = open_dataset(tmp_path), MultiCrop(SMALL)
    one = crops(dataset.image(0), np.random.default_rng(1))
    other = fast.fast_views(dataset, 0, crops, np.random.default_rng(1))
    assert other.slow
    for a, b in zip([*one.globals, *one.locals], [*other.globals, *other.locals], strict=True):
        np.testing.assert_array_equal(a, b)


def test_channels_come_last_in_memory(photographs):
    views = fast.fast_views(photographs, 0, MultiCrop(SMALL), np.random.default_rng(0))
    assert all(view.transpose(1, 2, 0).flags.c_contiguous for view in views.globals)


def test_a_missing_package_is_named(monkeypatch):
    assert fast.choose_decoder("auto") == ("fast", "simplejpeg and OpenCV are installed")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert fast.choose_decoder("auto").decoder == "pillow"
    assert "pip install 'opendino[fast]'" in fast.choose_decoder("auto").reason
    assert fast.choose_decoder("pillow").decoder == "pillow"
    with pytest.raises(ConfigError, match=r"loader.decoder = fast: simplejpeg .* pip install 'opendino\[fast\]'"):
        fast.choose_decoder("fast")


def test_the_eye_of_evaluation_is_pillows_within_a_level(photographs):
    transform = EvalTransform(96, 110)
    for index in range(len(photographs)):
        one = transform(photographs.image(index))
        other = transform(fast.photo_of(photographs, index))
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 2 / 255 / 0.224
        assert (one - other).abs().mean() < 0.1 / 255 / 0.224
