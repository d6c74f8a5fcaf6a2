# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view import _drawing, pca
from opendino.view._drawing import Panel, PictureConfig


def test_a_map_is_bright_where_it_is_high():
    values = np.zeros((2, 4), dtype=np.float64)
    values[1, 3] = 5.0
    made = np.asarray(_drawing.overlay(Image.new("RGB", (40, 20), "gray"), values, low=0.0, high=5.0, smooth=False))
    assert (made[10:, 30:] == made[15, 35]).all()
    assert made[15, 35].sum() > made[5, 5].sum() + 100
    # What lies beyond the bounds is as bright as the bounds.
    twice = np.asarray(
        _drawing.overlay(Image.new("RGB", (40, 20), "gray"), 2 * values, low=0.0, high=5.0, smooth=False)
    )
    np.testing.assert_array_equal(made, twice)


def test_heat_rises_in_grey_too():
    grey = _drawing.heat(np.linspace(0, 1, 20)).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0).all()


def test_a_sheet_holds_all_panels():
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (10, 40), "blue")
    made = _drawing.sheet([[Panel(red), Panel(blue)], [Panel(blue)]])
    colours = {colour: count for count, colour in made.getcolors()}
    assert colours[(255, 0, 0)] == 600
    assert colours[(0, 0, 255)] == 800


def test_fitted_keeps_the_shape():
    assert _drawing.fitted(np.zeros((30, 60, 4), np.float32), 100).size == (100, 50)


def test_devices_and_sizes_that_are_not():
    with pytest.raises(ConfigError, match="abacus"):
        pca.place(VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1), "abacus")
    with pytest.raises(ConfigError, match="give 1 or more"):
        PictureConfig(side=0)
