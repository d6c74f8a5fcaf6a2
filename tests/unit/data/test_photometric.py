# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.data import photometric
from opendino.data.crops import pixels_of

IMAGE = dict(zip(("brightness", "contrast", "saturation", "hue"), photometric.JITTER_IMAGE, strict=True))
ARRAY = dict(zip(("brightness", "contrast", "saturation", "hue"), photometric.JITTER_ARRAY, strict=True))
FACTORS = {
    "brightness": (0.6, 1.0, 1.37),
    "contrast": (0.6, 1.0, 1.37),
    "saturation": (0.8, 1.0, 1.2),
    "hue": (-0.1, -0.033, 0.0, 0.05, 0.1),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("name", "factor"), [(name, factor) for name, values in FACTORS.items() for factor in values])
def test_jitter_of_photographs_is_torchvisions(oracle, golden, mode, name, factor):
    result = IMAGE[name](oracle.small(mode), factor)
    assert result.mode == mode
    np.testing.assert_array_equal(np.asarray(result), golden[f"{name}/{mode}/{factor}"])


def test_grey_is_torchvisions(oracle, golden):
    np.testing.assert_array_equal(np.asarray(photometric.grey_image(oracle.small())), golden["gray"])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_solarize_is_torchvisions(oracle, golden, mode):
    result = photometric.solarize(pixels_of(oracle.small(mode)))
    np.testing.assert_array_equal(result, channels_first(golden[f"solarize/{mode}"]))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("sigma", [0.1, 0.45, 1.3, 2.0])
def test_blur_is_torchvisions_to_the_last_rounding(oracle, golden, mode, sigma):
    """By matrices and by additions: the small picture takes the first way, the large one the second."""
    small = photometric.blur(pixels_of(oracle.small(mode)), sigma)
    large = photometric.blur(pixels_of(oracle.picture(mode)), sigma)[:, 1::7, ::5]
    for ours, name in ((small, "blur"), (large, "blur_large")):
        theirs = channels_first(golden[f"{name}/{mode}/{sigma}"])
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("name", list(FACTORS))
def test_jitter_of_arrays_is_torchvisions_for_floats(oracle, golden, name):
    ours = ARRAY[name](oracle.tiny().transpose(1, 2, 0), FACTORS[name][0])
    np.testing.assert_allclose(pixels_of(ours), golden[f"float/{name}"], atol=2e-6)


def test_blur_and_solarize_of_arrays_are_torchvisions_for_floats(oracle, golden):
    np.testing.assert_allclose(photometric.blur(oracle.tiny(), 1.3), golden["float/blur"], atol=2e-6)
    np.testing.assert_allclose(photometric.solarize(oracle.tiny()), golden["float/solarize"], atol=1e-7)


def test_both_ways_of_blurring_agree():
    rng = np.random.default_rng(0)
    pixels = rng.random((2, 70, 33), dtype=np.float32)
    by_additions = photometric.blur(pixels, 1.7)
    kernel = photometric.gaussian_kernel(1.7)
    rows, columns = photometric._blur_matrix(70, kernel), photometric._blur_matrix(33, kernel)
    np.testing.assert_allclose(by_additions, rows @ pixels @ columns.T, atol=1e-6)


def test_a_kernel_by_hand():
    # sigma 1: exp(-x^2 / 2) at 0..4 is 1, .60653, .13534, .011109, .00033546; the nine sum to 2.50662
    kernel = photometric.gaussian_kernel(1.0)
    np.testing.assert_allclose(kernel[4:], np.array([1, 0.60653, 0.13534, 0.011109, 0.00033546]) / 2.50662, rtol=1e-4)
    np.testing.assert_array_equal(kernel, kernel[::-1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
def test_blur_mirrors_the_edges_of_any_size(size):
    """Rows of the matrix sum to one, so a constant image stays; numpy's mirror is the oracle."""
    kernel = photometric.gaussian_kernel(2.0)
    matrix = photometric._blur_matrix(size, kernel)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    line = np.random.default_rng(1).random(size).astype(np.float32)
    padded = np.pad(line, 4, mode="reflect") if size > 1 else np.repeat(line, 9)
    np.testing.assert_allclose(matrix @ line, np.convolve(padded, kernel, mode="valid"), atol=1e-6)


def test_a_full_turn_of_the_hue_changes_nothing(oracle):
    array = oracle.tiny().transpose(1, 2, 0)
    np.testing.assert_allclose(photometric.hue_array(array, 1.0), array, atol=1e-5)
    third = photometric.hue_array(array, 1 / 3)
    np.testing.assert_allclose(third, array[..., [2, 0, 1]], atol=1e-5)  # red becomes green


def test_jitter_of_photographs_and_arrays_agree(oracle):
    photo = oracle.small()
    array = np.asarray(photo, dtype=np.float32) / 255
    for name, limit in (("brightness", 1), ("contrast", 1.5), ("saturation", 1.5), ("hue", 10)):
        factor = FACTORS[name][0]
        difference = np.abs(np.asarray(IMAGE[name](photo, factor)) - ARRAY[name](array, factor) * 255)
        assert difference.max() <= limit, name  # hue goes through 8 bits of hue, saturation and value


def test_other_numbers_of_channels_have_no_colour():
    array = np.random.default_rng(0).random((6, 5, 4), dtype=np.float32)
    for same in (
        photometric.saturation_array(array, 0.1),
        photometric.hue_array(array, 0.3),
        photometric.grey_array(array),
    ):
        np.testing.assert_array_equal(same, array)
    np.testing.assert_array_equal(photometric.solarize(pixels_of(array)), pixels_of(array))


def test_contrast_of_many_channels_is_each_about_its_own_mean():
    array = np.zeros((4, 4, 2), dtype=np.float32)
    array[:2, :, 0], array[:, :2, 1] = 0.2, 0.8
    flat = photometric.contrast_array(array, 0.0)
    np.testing.assert_allclose(flat[..., 0], 0.1, atol=1e-7)
    np.testing.assert_allclose(flat[..., 1], 0.4, atol=1e-7)


def test_grey_photographs_have_no_hue_and_no_saturation(oracle):
    grey = Image.merge("RGB", [oracle.small("L")] * 3)
    for name in ("saturation", "hue"):
        np.testing.assert_array_equal(np.asarray(IMAGE[name](grey, 0.1)), np.asarray(grey))


def channels_first(array):
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
