# SPDX-License-Identifier: Apache-2.0
"""A small backbone whose every parameter is random, as a trained one's are."""

import pytest
import torch

from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def backbone():
    """A function that makes one, of other settings where they are given."""

    def make(**settings):
        sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 3, "num_heads": 2, "init_values": 1.0}
        model = VisionTransformer(**(sizes | settings)).eval()
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if "gamma" in name or "norm" in name else 0.0, std=0.2)
        return model

    return make
