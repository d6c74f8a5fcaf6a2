# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.models.input_spec import InputSpec


def test_three_channels_have_imagenet_statistics():
    spec = InputSpec.default((224, 336), 3)
    assert (spec.size, spec.channels) == ((224, 336), 3)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_have_what_training_feeds_them(channels):
    assert InputSpec.default((32, 32), channels) == InputSpec((32, 32), channels, (0.5,) * channels, (0.25,) * channels)
