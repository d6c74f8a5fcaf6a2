# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view import PICTURES, view


@pytest.mark.parametrize("picture", list(PICTURES))
def test_each_picture_by_a_function(picture, tmp_path, picture_folder):
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    out = view(picture, str(tmp_path / "w"), [picture_folder], out=str(tmp_path / "x.png"), images=3, device="cpu")
    with Image.open(out) as made:
        assert len(np.unique(np.asarray(made))) > 20


def test_what_is_no_picture_and_no_setting():
    with pytest.raises(ConfigError, match="view pac: no such picture; did you mean pca"):
        view("pac", "m", ["x"])
    with pytest.raises(ConfigError, match="view pca: sizes is no setting; did you mean size"):
        view("pca", "m", ["x"], sizes=3)
