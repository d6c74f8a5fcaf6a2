# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.data.normalization import IMAGENET_MEAN, normalization
from opendino.errors import ConfigError


def test_normalization_by_default_and_as_given():
    assert normalization(3)[0] == IMAGENET_MEAN
    assert normalization(2) == ((0.5, 0.5), (0.25, 0.25))
    assert normalization(1, (0.2,), (0.3,)) == ((0.2,), (0.3,))
    with pytest.raises(ConfigError, match=r"crops.mean has 3 values for 1 channels"):
        normalization(1, (0.1, 0.2, 0.3))
    with pytest.raises(ConfigError, match=r"crops.std .* not positive"):
        normalization(1, std=(0.0,))
