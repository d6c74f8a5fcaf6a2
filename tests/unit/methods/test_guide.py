# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from opendino.errors import ModelError
from opendino.methods.guide import Guide, Guided, check_crops_fit, on_grid
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1, "init_values": 0.5}


def made_guide(images=None, size=0, **shape):
    torch.manual_seed(1)
    backbone = VisionTransformer(**{**SHAPE, **shape})
    backbone.input_spec = InputSpec((16, 16), 3, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    return Guide(nn.ModuleDict({"backbone": backbone}), None, images, size)


def test_it_says_what_its_backbone_says_and_cannot_be_trained():
    guide = made_guide().train()
    crops = torch.randn(3, 3, 16, 16)
    said, wanted = guide.say(crops), guide.backbone.forward_features(crops)
    assert torch.equal(said.cls, wanted["x_norm_clstoken"])
    assert torch.equal(said.patches.flatten(1, 2), wanted["x_norm_patchtokens"])
    assert said.patches.shape == (3, 4, 4, 16)
    assert not any(module.training for module in guide.modules())
    assert not said.cls.requires_grad
    assert not any(parameter.requires_grad for parameter in guide.parameters())


def test_crops_normalised_for_another_network_are_brought_to_its_own_normalisation():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    guide, plain = made_guide((mean, std)), made_guide()
    pixels = torch.rand(2, 3, 16, 16)
    ours = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    theirs = (pixels - torch.tensor((0.5, 0.4, 0.3)).view(3, 1, 1)) / torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)
    torch.testing.assert_close(guide.say(ours).cls, plain.say(theirs).cls, rtol=1e-4, atol=1e-5)


def test_crops_are_resized_for_it():
    guide = made_guide(size=24, img_size=24)
    assert guide.say(torch.randn(2, 3, 16, 16)).patches.shape == (2, 6, 6, 16)
    constant = guide.say(torch.full((1, 3, 16, 16), 0.3)).cls
    torch.testing.assert_close(constant, guide.say(torch.full((1, 3, 24, 24), 0.3)).cls, rtol=1e-4, atol=1e-5)


def test_patches_on_a_coarser_grid_are_means_and_on_the_same_grid_themselves():
    patches = torch.randn(2, 4, 4, 5)
    assert torch.equal(on_grid(patches, (4, 4)), patches.flatten(1, 2))
    ramp = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 4, 4, 1)
    # Half the grid: a triangle over four columns (1 3 3 1)/8, its part beyond the border cut off.
    found = on_grid(ramp, (2, 2)).view(2, 2)
    torch.testing.assert_close(found[:, 0], torch.full((2,), (0 * 3 + 1 * 3 + 2 * 1) / 7))
    torch.testing.assert_close(found[0] + found[0].flip(0), torch.full((2,), 3.0))
    assert torch.allclose(on_grid(torch.full((1, 4, 4, 2), 0.7), (3, 7)), torch.tensor(0.7))


def test_it_follows_a_method_between_dtypes_and_is_not_in_its_state():
    method = Guided()
    method.student = method.teacher = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    method.guide_by(made_guide())
    method.to(torch.float64)
    assert method.guide.backbone.cls_token.dtype == torch.float64
    assert set(method.state_dict()) == {
        f"{name}.backbone.{part}" for name in ("student", "teacher") for part in ("weight", "bias")
    }
    assert not [name for name, _ in method.named_parameters() if "guide" in name]


def test_crops_that_are_no_whole_patches_of_it_are_refused_with_a_size_that_would_do():
    backbone = made_guide(patch_size=8).backbone
    check_crops_fit(backbone, 16)
    with pytest.raises(ModelError, match=r"patches of 8 pixels.*the 20 pixels.*resize=16.*or 24"):
        check_crops_fit(backbone, 20)
