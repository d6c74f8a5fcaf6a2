# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture(params=["plain", "registers and swiglu"])
def weights(request, tmp_path):
    torch.manual_seed(0)
    more = {"num_register_tokens": 2, "interpolate_antialias": True, "interpolate_offset": 0.0, "ffn_layer": "swiglu"}
    arguments = {"img_size": 56, "patch_size": 14, "embed_dim": 64, "depth": 2, "num_heads": 1}
    backbone = VisionTransformer(**arguments, **(more if request.param != "plain" else {}))
    torch.nn.init.normal_(backbone.pos_embed, std=0.5)  # a table of zeros would hide how it is resized
    save_weights(backbone, tmp_path / "w")
    return str(tmp_path / "w")


@pytest.fixture
def weights_of(tmp_path):
    """Four blocks, as the larger heads want them."""
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=4, num_heads=1, num_register_tokens=1)
    torch.nn.init.normal_(backbone.pos_embed, std=0.5)
    save_weights(backbone, tmp_path / "w")
    return str(tmp_path / "w")
