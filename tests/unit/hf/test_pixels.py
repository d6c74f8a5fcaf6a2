# SPDX-License-Identifier: Apache-2.0
"""The steps of one image: sizes and borders by hand, values by formula, the fast way beside the exact one."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from opendino.hf import _pixels
from opendino.hf.errors import InputError
from opendino.hf.image_processing import Dinov2ImageProcessor


def settings(**given):
    return Dinov2ImageProcessor(**given)._settings({})


def photo(height, width, channels=3):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, channels)).astype(np.uint8)
    image = Image.fromarray(coarse if channels > 1 else coarse[..., 0])
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)


@pytest.mark.parametrize(
    ("size", "wanted", "want"),
    [
        ((480, 640), {"shortest_edge": 256}, (256, 341)),  # 256 * 640 / 480 = 341.33
        ((640, 480), {"shortest_edge": 256}, (341, 256)),
        ((300, 300), {"shortest_edge": 256}, (256, 256)),
        ((7, 9), {"height": 3, "width": 5}, (3, 5)),
    ],
)
def test_sizes(size, wanted, want):
    assert _pixels.target_size(size, wanted) == want


@pytest.mark.parametrize(
    ("have", "want", "offsets"), [(341, 224, (58, 0)), (224, 224, (0, 0)), (3, 6, (0, 2)), (4, 6, (0, 1))]
)
def test_centre_or_border(have, want, offsets):
    assert _pixels._offsets(have, want) == offsets


def test_crop_with_and_without_border():
    planes = np.arange(24).reshape(1, 4, 6)
    assert _pixels._crop(planes, (2, 2)).tolist() == [[[8, 9], [14, 15]]]
    bordered = _pixels._crop(planes[:, :1, :2], (2, 3))
    assert bordered.tolist() == [[[0, 0, 0], [0, 0, 1]]]
    for size in ((2, 2), (2, 3), (7, 5), (5, 9)):
        same = _pixels._crop_tensor(torch.from_numpy(planes), size).numpy()
        assert np.array_equal(same, _pixels._crop(planes, size))


@pytest.mark.parametrize(
    ("shape", "layout", "want"),
    [
        ((3, 8, 9), None, False),
        ((8, 9, 3), None, True),
        ((3, 8, 3), None, False),
        ((3, 8, 3), "channels_last", True),
        ((8, 9, 4), None, True),
        ((8, 9, 7), "channels_last", True),
    ],
)
def test_where_the_channels_are(shape, layout, want):
    assert _pixels.channels_last(shape, layout) is want


def test_channels_that_cannot_be_found():
    with pytest.raises(InputError, match="neither first nor last"):
        _pixels.channels_last((8, 9, 7), None)


def test_lists_of_lists_and_batches():
    image, array, batch = Image.new("RGB", (4, 5)), np.zeros((3, 4, 5)), torch.zeros(2, 3, 4, 5)
    assert len(_pixels.flatten([image, [array, batch]])) == 4
    for nothing, complaint in (([], "no images came"), ("a.png", "str is no image"), (np.zeros(3), "of shape")):
        with pytest.raises(InputError, match=complaint):
            _pixels.flatten(nothing)


def test_values_are_the_formula_in_float32():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    key = (1 / 255, True, (0.485,), (0.229,))
    got = _pixels._table(key)[0]
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    assert np.array_equal(got, (scaled - np.float32(0.485)) / np.float32(0.229))
    assert np.array_equal(_pixels._values(values, key)[0].ravel(), got)


def test_exact_is_pillow_then_the_formula():
    array = photo(97, 131)
    resized = np.asarray(Image.fromarray(array).resize((86, 64), Image.Resampling.BICUBIC))
    centre = resized[4:60, 15:71].astype(np.float64) / 255
    want = ((centre - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
    chosen = settings(size=64, crop_size=56)
    for image in (Image.fromarray(array), array, array.transpose(2, 0, 1), torch.from_numpy(array)):
        got = _pixels.exact(image, chosen, None)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_transparency_lies_over_white():
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    flat = np.asarray(_pixels.opaque(image))
    assert flat[0, 0].tolist() == [10, 20, 30]
    assert flat[5, 5].tolist() == [255, 255, 255]
    arrays = _pixels._planes(np.asarray(image), True, None)
    assert np.array_equal(arrays, flat.transpose(2, 0, 1))


def test_grey_is_repeated():
    grey = photo(40, 50, 1)[..., 0]
    chosen = settings(size=32, crop_size=28, do_normalize=False)
    for image in (Image.fromarray(grey), grey, grey[None], torch.from_numpy(grey)):
        for way in (_pixels.exact, _pixels.fast):
            out = np.asarray(way(image, chosen, None))
            assert out.shape == (3, 28, 28)
            assert np.array_equal(out[0], out[1])


def test_floats_are_scaled_and_bytes_again():
    array = photo(64, 64).astype(np.float32) / 255
    chosen = settings(size=32, crop_size=32, do_rescale=False, do_normalize=False)
    out = _pixels.exact(array, chosen, None)
    assert out.dtype == np.float32
    assert np.array_equal(out, (np.round(out * 255).astype(np.float64) / 255).astype(np.float32))
    with pytest.raises(InputError, match="cannot be resized"):
        _pixels.exact(array * 2 - 1, chosen, None)


def test_more_channels_go_one_by_one():
    array = np.random.default_rng(1).integers(0, 256, (40, 40, 6)).astype(np.uint8)
    chosen = settings(size=20, crop_size=20, do_convert_rgb=False, do_normalize=False, do_rescale=False)
    out = _pixels.exact(array, chosen, "channels_last")
    want = np.asarray(Image.fromarray(array[..., 4]).resize((20, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(out[4], want)


@pytest.mark.parametrize("size", [(480, 640), (257, 255), (64, 64)])
def test_fast_is_near_exact(size):
    array = photo(*size)
    chosen = settings(do_rescale=False, do_normalize=False)
    exact = _pixels.exact(array, chosen, None).astype(int)
    fast = _pixels.fast(torch.from_numpy(array), chosen, None).numpy().astype(int)
    assert np.abs(exact - fast).max() <= 1
    assert (exact != fast).mean() < 0.02
    chosen = settings()
    np.testing.assert_allclose(
        _pixels.fast(array, chosen, None).numpy(), _pixels.exact(array, chosen, None), atol=1.01 / 255 / 0.224
    )


def test_fast_resizes_floats_without_bytes():
    array = torch.rand(3, 64, 64)
    out = _pixels.fast(array, settings(size=32, crop_size=32, do_rescale=False, do_normalize=False), None)
    assert out.dtype == torch.float32
    want = torch.nn.functional.interpolate(array[None], size=(32, 32), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(out, want)


def test_statistics_must_fit_the_channels():
    with pytest.raises(InputError, match="image_mean has 1 numbers for images of 3 channels"):
        _pixels.exact(photo(40, 40), settings(size=20, crop_size=20, image_mean=[0.5]), None)


def test_filters_without_a_fast_form():
    with pytest.raises(InputError, match="no fast form"):
        _pixels.fast(photo(40, 40), settings(resample=1), None)
