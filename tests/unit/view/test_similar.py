# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.errors import ConfigError
from opendino.view.similar import SimilarConfig, similarity


def test_the_spot_is_like_itself_and_scale_does_not_matter():
    features = torch.randn(4, 6, 16)
    other = torch.randn(2, 2, 16)
    other[1, 0] = 5 * features[3, 1]
    own, there = similarity([features, other], (1.5 / 6, 3.5 / 4))
    assert own.argmax() == 3 * 6 + 1
    assert float(own.max()) == pytest.approx(1, abs=1e-5)
    assert there.argmax() == 2
    assert float(there.max()) == pytest.approx(1, abs=1e-5)


def test_the_far_corner_is_a_point_of_the_image():
    features = torch.randn(4, 6, 16)
    assert similarity([features], (1.0, 1.0))[0].argmax() == 23


@pytest.mark.parametrize("settings", [{"points": ((0.5, 1.2),)}, {"points": ()}, {"low": 1.0}])
def test_points_that_are_none(settings):
    with pytest.raises(ConfigError, match="points"):
        SimilarConfig(**settings)
