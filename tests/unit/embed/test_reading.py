# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.embed import EmbedConfig, embed, matrix, read, summary
from opendino.errors import DataError
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture_folder):
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("read")
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), home / "w")
    config = EmbedConfig(features=("patches", "patch_mean", "cls"), rows=16, size=16, device="cpu", dtype="float16")
    return embed(str(home / "w"), str(picture_folder), home / "out", config).folder


def test_a_summary_says_what_is_there(folder):
    found = summary(folder)
    assert (found.images, found.skipped) == (40, 0)
    assert found.shapes == {"patches": (4, 4, 64), "patch_mean": (64,), "cls": (64,)}
    assert found.settings["dtype"] == "float16"
    assert found.model.endswith("/w")


def test_the_matrix_is_the_first_vector(folder):
    _, features = read(folder, "patch_mean", "patches")
    assert matrix(folder).dtype == np.float32
    np.testing.assert_array_equal(matrix(folder), features["patch_mean"].astype(np.float32))
    np.testing.assert_allclose(features["patches"].astype(np.float32).mean(axis=(1, 2)), matrix(folder), atol=2e-3)


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(DataError, match="holds no 'clss'; there are patches, patch_mean, cls"):
        read(folder, "clss")
    with pytest.raises(DataError, match="patches is a vector"):
        matrix(folder, "patches")
    with pytest.raises(DataError, match="is no folder of features"):
        summary(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="is not finished"):
        summary(tmp_path)
