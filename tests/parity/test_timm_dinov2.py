# SPDX-License-Identifier: Apache-2.0
"""The backbone against timm's register models with the same random weights, float32 on the CPU, 1e-5."""

import pytest
import torch

from opendino.models.presets import create

timm = pytest.importorskip(
    "timm",
    reason="timm is the oracle here; it needs a torchvision that imports beside this torch",
    exc_type=ImportError,
)


def to_timm(state):
    """timm splits the table into CLS and patches' part in its own way for register models: CLS has no position."""
    state = dict(state)
    del state["mask_token"]
    table = state.pop("pos_embed")
    state["cls_token"] = state["cls_token"] + table[:, :1]
    state["pos_embed"] = table[:, 1:]
    state["reg_token"] = state.pop("register_tokens")
    return {name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2."): value for name, value in state.items()}


def randomise(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
                parameter.normal_(1.0, 0.3)
            elif name.endswith(("token", "tokens", "pos_embed")):
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(std=0.04)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("size", [(98, 98), (224, 224), (518, 518), (224, 336)], ids=str)
def test_register_model(size, swiglu):
    small = {"embed_dim": 128, "depth": 3, "num_heads": 2}
    ours = randomise(create("vits14_reg4", ffn_layer="swiglu" if swiglu else "mlp", **small))
    name = "vit_giant_patch14_reg4_dinov2" if swiglu else "vit_small_patch14_reg4_dinov2"
    ratio = {"mlp_ratio": ours.blocks[0].mlp.w12.out_features / 128} if swiglu else {}
    theirs = timm.create_model(name, img_size=518, dynamic_img_size=True, num_classes=0, **small, **ratio).eval()
    theirs.load_state_dict(to_timm(ours.state_dict()), strict=True)
    x = torch.randn(2, 3, *size)
    features = ours.forward_features(x)
    found = torch.cat(
        [features["x_norm_clstoken"][:, None], features["x_norm_regtokens"], features["x_norm_patchtokens"]], dim=1
    )
    assert found.std() > 0.5
    torch.testing.assert_close(found, theirs.forward_features(x), atol=1e-5, rtol=0)
