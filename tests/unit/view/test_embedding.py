# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view.embedding import EmbeddingConfig, draw, layout, run, to_grid


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_groups_stay_together(method):
    centres = torch.eye(3).repeat_interleave(10, dim=0) * 5
    places = layout(torch.nn.functional.pad(centres, (0, 5)) + 0.1 * torch.randn(30, 8), EmbeddingConfig(method=method))
    assert places.min() == 0
    assert places.max() == 1
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(30)
    assert (distances.argmin(axis=1) // 10 == np.arange(30) // 10).all()


def test_a_grid_has_a_place_for_each():
    places = np.random.default_rng(0).random((10, 2))
    grid = to_grid(places)
    assert len({tuple(one) for one in grid.tolist()}) == 10
    # Points that are a grid already stay where they are.
    cells = np.stack(np.meshgrid([0, 0.5, 1], [0, 0.5, 1]), axis=-1).reshape(-1, 2).astype(float)
    np.testing.assert_array_equal(to_grid(cells), cells)


def test_classes_have_borders():
    thumbs = [Image.new("RGB", (40, 40), "black")] * 2
    made = draw(thumbs, np.array([[0.0, 0.0], [1.0, 1.0]]), [0, -1], EmbeddingConfig(side=100, thumb=40))
    assert made.getpixel((0, 0)) == (0, 0x72, 0xB2)
    assert made.getpixel((20, 20)) == (0, 0, 0)
    assert made.getpixel((61, 61)) == (255, 255, 255)


def test_too_little(tmp_path):
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(DataError, match="1 images could be read"):
        run(backbone, [str(tmp_path)], EmbeddingConfig(device="cpu"))
    with pytest.raises(DataError, match="give one folder"):
        run(backbone, [str(tmp_path)] * 2, EmbeddingConfig(device="cpu"))


def test_thumbnails_fill_the_map():
    """On a grid each fills its place; elsewhere all of them together cover half of the map."""
    assert EmbeddingConfig(side=1000, grid=True).thumb_of(24) == 200
    assert EmbeddingConfig(side=1000, grid=True, thumb=56).thumb_of(24) == 56
    assert EmbeddingConfig(side=1000, grid=True, thumb=900).thumb_of(24) == 200
    assert 24 * EmbeddingConfig(side=1000).thumb_of(24) ** 2 == pytest.approx(1000**2 / 2, rel=0.02)
    assert EmbeddingConfig(side=1000, thumb=56).thumb_of(24) == 56
