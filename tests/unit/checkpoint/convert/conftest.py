# SPDX-License-Identifier: Apache-2.0
"""Official state dicts of tiny backbones, one of each kind that the formats treat differently."""

import pytest
import torch

from opendino.models.vision_transformer import VisionTransformer

KINDS = {
    "plain": {},
    "registers": {"num_register_tokens": 4},
    "gated": {"ffn_layer": "swiglu"},
    "gated-registers": {"ffn_layer": "swiglu", "num_register_tokens": 4},
    "no-query-bias": {"qkv_bias": False},
    "other-channels": {"in_chans": 5},
    "not-square": {"img_size": (28, 42)},
}


@pytest.fixture(scope="session")
def draw():
    """A backbone whose every tensor is random, so that no two can be mistaken for each other."""

    def draw(**arguments):
        shape = {"img_size": 28, "patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 1, "init_values": 1.0}
        model = VisionTransformer(**{**shape, **arguments})
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return draw


@pytest.fixture(scope="session")
def assert_same():
    """Equal names, and tensors equal to the bit, the sign of zero included."""

    def assert_same(a, b):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype == torch.float32, name
            assert torch.equal(a[name].view(torch.int32), b[name].view(torch.int32)), name

    return assert_same


@pytest.fixture(params=KINDS)
def state(request, draw):
    return draw(**KINDS[request.param]).state_dict()
