# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.embed import EmbedConfig, embed
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture(scope="session")
def served(tmp_path_factory, picture_folder):
    """A model and an embedded folder."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("served")
    shutil.copytree(picture_folder / "class0", home / "images")
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), home / "w")
    config = EmbedConfig(features=("patch_mean",), size=16, device="cpu")
    embed(str(home / "w"), str(home / "images"), home / "features", config)
    return home
