# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.data.crops import size_of
from opendino.data.transforms import EvalTransform, centre, shorter_side_to
from opendino.errors import ConfigError, DataError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["landscape", "exact", "smaller", "enlarged", "wide"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resize_and_centre_are_torchvisions(oracle, golden, mode, name, turned):
    resize, size = oracle.FRAMES[name]
    image = oracle.picture(mode, 73, 50) if turned else oracle.picture(mode)
    channels = len(mode)
    transform = EvalTransform(size, resize, (0.0,) * channels, (1.0,) * channels, channels)
    expected = golden[f"frame/{mode}/{name}/{turned}"].reshape(*transform.size, channels).transpose(2, 0, 1)
    np.testing.assert_array_equal((transform(image) * 255).round().numpy(), expected)


def test_the_tensor_is_torchvisions(oracle, golden):
    tensor = EvalTransform(13, 13).to_tensor(oracle.picture("RGB", 13, 17))
    np.testing.assert_allclose(tensor.numpy(), golden["tensor"], atol=2e-6)


def test_the_resize_is_8_7_of_the_crop_by_default():
    assert EvalTransform(224).resize == 256
    assert EvalTransform((518, 224)).resize == 256
    assert EvalTransform(32).resize == round(32 * 8 / 7)


@pytest.mark.parametrize(
    ("size", "length", "expected"),
    [((90, 120), 40, (40, 53)), ((120, 90), 40, (53, 40)), ((50, 50), 7, (7, 7)), ((3, 1000), 2, (2, 666))],
)
def test_the_longer_side_is_rounded_down(size, length, expected):
    assert shorter_side_to(size, length) == expected


def test_arrays_take_the_same_way(oracle):
    photo = oracle.picture().point(lambda value: 64 + value // 2)
    array = np.asarray(photo, dtype=np.float32) / 255
    transform = EvalTransform(40, 50)
    torch.testing.assert_close(transform(array), transform(photo), atol=1.1 / 255 / 0.22, rtol=0)
    five = np.concatenate([array, array[..., :2]], axis=-1)
    out = EvalTransform(40, 50, channels=5)(five)
    torch.testing.assert_close(out[:3] * 0.25 + 0.5, EvalTransform(40, 50, **PLAIN)(array))


def test_a_small_array_is_set_in_black_like_a_photograph(oracle):
    photo = oracle.picture("L", 10, 15)
    array = np.asarray(photo, dtype=np.float32)[..., None] / 255
    framed = centre(array, (21, 18))
    assert size_of(framed) == (21, 18)
    np.testing.assert_allclose(framed[..., 0], np.asarray(centre(photo, (21, 18))) / 255, atol=1e-7)


def test_photographs_become_grey_or_colour(oracle):
    assert EvalTransform(8, channels=1)(oracle.picture("RGB")).shape == (1, 8, 8)
    assert EvalTransform(8)(oracle.picture("L")).shape == (3, 8, 8)
    with pytest.raises(DataError, match="3 channels came where 2 were wanted"):
        EvalTransform(8, channels=2)(oracle.picture("RGB"))


def test_sizes_without_pixels_are_refused():
    with pytest.raises(ConfigError, match="leaves no pixel"):
        EvalTransform(0)
