# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.errors import ModelError
from opendino.layers.dino_head import DINOHead, Prototypes


@pytest.mark.parametrize(
    ("dim", "prototypes", "bottleneck", "published"),
    [
        (1024, 65536, 256, 23_662_848),
        (1024, 131072, 384, 57_545_088),
        (1024, 131072, 256, 40_505_600),
        (1536, 131072, 384, 58_593_664),
        (1536, 131072, 256, 41_554_176),
    ],
)
def test_published_parameter_counts(dim, prototypes, bottleneck, published):
    with torch.device("meta"):
        head = DINOHead(dim, prototypes, bottleneck_dim=bottleneck)
    assert sum(p.numel() for p in head.parameters()) == published


def test_official_keys():
    shapes = {name: tuple(p.shape) for name, p in DINOHead(6, 11, hidden_dim=7, bottleneck_dim=5).state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (7, 6),
        "mlp.0.bias": (7,),
        "mlp.2.weight": (7, 7),
        "mlp.2.bias": (7,),
        "mlp.4.weight": (5, 7),
        "mlp.4.bias": (5,),
        "last_layer.weight_g": (11, 1),
        "last_layer.weight_v": (11, 5),
    }
    one = DINOHead(6, 11, bottleneck_dim=5, nlayers=1).state_dict()
    assert list(one) == ["mlp.weight", "mlp.bias", "last_layer.weight_g", "last_layer.weight_v"]
    assert set(DINOHead(6, 11, 7, 5, nlayers=2).mlp.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_equals_the_formula():
    head = DINOHead(6, 11, hidden_dim=7, bottleneck_dim=5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    x = torch.randn(4, 6)
    state = head.state_dict()
    hidden = x
    for layer in (0, 2, 4):
        hidden = hidden @ state[f"mlp.{layer}.weight"].T + state[f"mlp.{layer}.bias"]
        if layer < 4:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    cosines = torch.cosine_similarity(hidden[:, None], state["last_layer.weight_v"], dim=-1)
    torch.testing.assert_close(head(x), cosines * state["last_layer.weight_g"].T)


def test_logits_depend_on_directions_not_lengths():
    head = DINOHead(6, 11, hidden_dim=7, bottleneck_dim=5)
    x = torch.randn(4, 6)
    before = head(x)
    assert before.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.last_layer.weight_v.mul_(7.0)
        head.mlp[4].weight.mul_(3.0)
        head.mlp[4].bias.mul_(3.0)
    torch.testing.assert_close(head(x), before)


def test_prototypes_equal_weight_norm():
    layer = Prototypes(5, 11)
    with torch.no_grad():
        layer.weight_g.uniform_(0.5, 2.0)
    x = torch.randn(3, 5)
    weight = torch._weight_norm(layer.weight_v, layer.weight_g, 0)
    loss = (x @ weight.T).square().sum()
    wanted = torch.autograd.grad(loss, list(layer.parameters()))
    ours = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(ours, wanted)


def test_start_values():
    head = DINOHead(64, 500, hidden_dim=256, bottleneck_dim=64)
    for layer in (0, 2, 4):
        weight = head.mlp[layer].weight
        assert abs(weight.std().item() - 0.02) < 1e-3
        assert not head.mlp[layer].bias.any()
    assert torch.equal(head.last_layer.weight_g, torch.ones(500, 1))
    directions = head.last_layer.weight_v  # uniform in +-1/8: deviation 1/8/sqrt(3)
    assert directions.abs().max() <= 1 / 8
    assert abs(directions.std().item() - 1 / 8 / math.sqrt(3)) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_vanishing_bottleneck_gives_finite_logits(dtype):
    head = DINOHead(6, 11, hidden_dim=7, bottleneck_dim=5).to(dtype)
    with torch.no_grad():
        head.mlp[4].weight.zero_()
    assert head(torch.randn(2, 6, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("name", ["out_dim", "hidden_dim", "bottleneck_dim", "nlayers"])
@pytest.mark.parametrize("size", [0, -2])
def test_sizes_that_cannot_be_built(name, size):
    shown = "prototypes" if name == "out_dim" else name
    with pytest.raises(ModelError, match=rf"^DINOHead\.{shown} = {size} is out of its range; use 1 to "):
        DINOHead(**{"in_dim": 6, "out_dim": 11, name: size})
