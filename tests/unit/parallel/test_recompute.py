# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from opendino import onednn
from opendino.layers.fast_linear import use_fast_linears
from opendino.models.vision_transformer import VisionTransformer
from opendino.parallel.recompute import recompute_blocks

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN")


def gradients(how):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2, drop_path_rate=0.4)
    names = set(backbone.state_dict())
    count = recompute_blocks(backbone, how)
    assert set(backbone.state_dict()) == names
    passes = []
    backbone.blocks[1].mlp.fc1.register_forward_hook(lambda *_: passes.append(1))
    crops = [torch.randn(6, 3, 8, 8), torch.randn(4, 3, 4, 4)]
    features = backbone.chosen_tokens(crops, [torch.tensor([1, 5, 6]), torch.tensor([2])])
    sum(tokens.square().sum() for group in features for tokens in group).backward()
    return count, len(passes), {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("how", ["full", "selective"])
def test_gradients_are_those_of_kept_activations(how, half):
    """Stochastic depth included: what is left out the first time is left out the second."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        _, once, wanted = gradients("none")
        count, twice, found = gradients(how)
    assert (count, once, twice) == (3, 1, 2)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


class Products(TorchDispatchMode):
    """Counts products of matrices that are computed; what recomputation has kept does not come here."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket._qualified_op_name in ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm")
        return func(*args, **(kwargs or {}))


def products(how, fast):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    recompute_blocks(backbone, how)
    if fast:
        assert use_fast_linears(backbone) == 8
    with Products() as counted:
        backbone(torch.randn(3, 3, 8, 8), is_training=True)["x_prenorm"].square().sum().backward()
    return counted.count


@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_onednn)])
def test_selective_multiplies_nothing_twice(fast):
    """Four layers of each of two blocks give one product forward, two backward; "full" gives most first ones again."""
    assert products("none", fast) == products("selective", fast) == 2 * 4 * 3
    assert products("full", fast) >= 2 * 4 * 3 + 2 * 3


def test_without_gradients_nothing_is_computed_twice():
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    images = torch.randn(2, 3, 8, 8)
    before = backbone(images)
    recompute_blocks(backbone, "full")
    with torch.no_grad():
        assert backbone(images).equal(before)
