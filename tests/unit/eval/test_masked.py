# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.errors import DataError
from opendino.eval._masked import Masked, MaskedConfig
from opendino.eval._pixel_data import Pair, Pairs
from opendino.eval._segmentation import IGNORE

PLAIN = MaskedConfig()


def masked(tmp_path, values, config=PLAIN, layout="pairs", classes=None, name="m.png", size=(2, 2)):
    Image.fromarray(np.array(values, np.uint8)).save(tmp_path / name)
    Image.new("RGB", size).save(tmp_path / "i.png")
    return Masked(Pairs("here", [Pair("one", tmp_path / "i.png", tmp_path / name)]), config, layout, classes)


def test_numbers_become_classes(tmp_path):
    assert masked(tmp_path, [[0, 1], [11, 255]], MaskedConfig(ignore=(11,))).mask(0).tolist() == [
        [0, 1],
        [IGNORE, IGNORE],
    ]
    # ADE20k: 0 is no class, 1 is the first.
    assert masked(tmp_path, [[0, 1], [150, 255]], layout="ade20k").mask(0).tolist() == [[IGNORE, 0], [149, IGNORE]]
    plain = MaskedConfig(reduce_zero=False)
    assert masked(tmp_path, [[0, 1], [2, 3]], plain, layout="ade20k").mask(0).tolist() == [[0, 1], [2, 3]]
    # Cityscapes: road 7 -> 0, car 26 -> 13, the rest is not measured.
    ids = masked(tmp_path, [[7, 26], [3, 33]], layout="cityscapes", name="x_labelIds.png")
    assert ids.mask(0).tolist() == [[0, 13], [IGNORE, 18]]


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(DataError, match="one: its mask has class 7, and there are 5"):
        masked(tmp_path, [[0, 7], [1, 2]], classes=5).mask(0)
    with pytest.raises(DataError, match="the image has 3x2 pixels and its mask 2x2"):
        masked(tmp_path, [[0, 1], [1, 2]], size=(3, 2)).both(0)
    image, mask = masked(tmp_path, [[0, 1], [1, 2]]).both(0)
    assert image.size == (2, 2)
    assert mask.shape == (2, 2)
