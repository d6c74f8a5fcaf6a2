# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendino.data.crops import DRAWS, Box, cut, flip, pixels_of, random_box, resize, size_of

SHARES = st.floats(0.01, 1).flatmap(lambda low: st.tuples(st.just(low), st.floats(low, 1)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ["inner", "enlarged", "whole", "thin"])
def test_cut_and_resize_are_torchvisions(oracle, golden, mode, name):
    top, left, height, width, size = oracle.BOXES[name]
    crop = resize(cut(oracle.picture(mode), Box(top, left, height, width)), size, size)
    np.testing.assert_array_equal(np.asarray(crop), golden[f"crop/{mode}/{name}"])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_flip_is_torchvisions(oracle, golden, mode):
    np.testing.assert_array_equal(np.asarray(flip(oracle.small(mode))), golden[f"flip/{mode}"])


def test_arrays_are_resized_as_torchvision_resizes_floats(oracle, golden):
    resized = resize(oracle.tiny().transpose(1, 2, 0), 9, 21)
    np.testing.assert_allclose(pixels_of(resized), golden["float/resize"], atol=2e-6)


def test_arrays_and_photographs_are_cut_resized_and_flipped_alike(oracle):
    photo = oracle.picture().point(lambda value: 64 + value // 2)  # far from the ends, where 8 bits clip between passes
    array = np.asarray(photo, dtype=np.float32) / 255
    box = Box(11, 20, 50, 71)
    a = flip(resize(cut(array, box), 33, 20))
    b = flip(resize(cut(photo, box), 33, 20))
    assert size_of(a) == size_of(b) == (33, 20)
    assert np.abs(pixels_of(a) * 255 - pixels_of(b)).max() <= 1.01  # 8 bits are rounded between the two passes


def test_channels_of_an_array_are_resized_one_by_one(oracle):
    array = np.asarray(oracle.small(), dtype=np.float32) / 255
    seven = np.concatenate([array, array[..., ::-1], array[..., :1]], axis=-1)
    out = resize(seven, 10, 12)
    np.testing.assert_array_equal(out[..., 3:6], resize(array, 10, 12)[..., ::-1])
    assert out.shape == (10, 12, 7)


def test_an_array_stays_within_its_range(oracle):
    edge = np.zeros((16, 16, 2), dtype=np.float32)
    edge[:, 8:] = 1
    enlarged = resize(edge, 64, 64)
    assert enlarged.min() == 0
    assert enlarged.max() == 1


def test_a_box_by_hand():
    # area = 100 * 100 * (0.25 + 0.75 * 0) = 2500, ratio = exp(ln(1/2) + ln(4) * 1/2) = 1: a square of 50
    draws = [0.0, 0.5] * 10 + [0.5, 0.99]
    assert random_box(100, 100, (0.25, 1.0), (0.5, 2.0), draws) == (int(0.5 * 51), int(0.99 * 51), 50, 50)


def test_a_box_takes_the_first_try_that_fits():
    # The whole area at ratio 2 is 141 wide: does not fit. The third try asks for ratio 1 and a quarter of the area.
    draws = [1.0, 1.0, 1.0, 1.0, 0.0, 0.5] + [1.0, 1.0] * 7 + [0.0, 0.0]
    assert random_box(100, 100, (0.25, 1.0), (0.5, 2.0), draws) == (0, 0, 50, 50)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (10, 1000, (0, 493, 10, 13)),  # 10 * 4/3 = 13.3 wide, in the middle
        (1000, 10, (493, 0, 13, 10)),  # 10 / (3/4) = 13.3 high
    ],
)
def test_no_try_fits_a_strip(height, width, box):
    assert random_box(height, width, (0.9, 1.0), (3 / 4, 4 / 3), [0.5] * DRAWS) == box


def test_no_try_fits_but_the_whole_image_does():
    draws = [1.0, 1.0] * 10 + [0.3, 0.3]  # the whole area at ratio 4/3 does not fit into a square
    assert random_box(64, 64, (0.5, 1.0), (3 / 4, 4 / 3), draws) == (0, 0, 64, 64)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    SHARES,
    st.lists(st.floats(0, 1, exclude_max=True), min_size=DRAWS, max_size=DRAWS),
)
def test_every_box_lies_in_the_image(height, width, scale, draws):
    top, left, h, w = random_box(height, width, scale, (3 / 4, 4 / 3), draws)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1


@pytest.mark.parametrize("name", ["global", "local", "flat", "tall"])
def test_boxes_follow_torchvisions_law(oracle, golden, name):
    height, width, scale = oracle.LAWS[name]
    draws = np.random.default_rng(0).random((20_000, DRAWS)).tolist()
    boxes = np.array([random_box(height, width, scale, (3 / 4, 4 / 3), row) for row in draws], dtype=np.float64)
    mean, deviation = oracle.summary(boxes)
    expected_mean, expected_deviation = golden[f"law/{name}"]
    error = 5 * expected_deviation * np.sqrt(2 / 20_000)
    assert (np.abs(mean - expected_mean) <= error + 1e-9).all()
    assert deviation == pytest.approx(expected_deviation, rel=0.04, abs=1e-9)
