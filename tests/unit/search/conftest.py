# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.embed import EmbedConfig, embed
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture(scope="session")
def embedded(tmp_path_factory, picture_folder):
    """Forty pictures, two of them twice, and one file that is none; their features in shards of sixteen."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("embedded")
    shutil.copytree(picture_folder, home / "images")
    for name in ("00", "04"):
        shutil.copy(home / "images" / "class0" / f"{name}.png", home / "images" / "class3" / f"copy{name}.png")
    (home / "images" / "class1" / "odd.png").write_bytes(b"no")
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), home / "w")
    config = EmbedConfig(features=("cls", "patches", "patch_mean"), rows=16, size=16, device="cpu")
    return embed(str(home / "w"), str(home / "images"), home / "features", config).folder
