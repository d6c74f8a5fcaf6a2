# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.cli import view
from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer


def test_a_picture_from_a_model_and_a_file(tmp_path, capsys):
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    out = tmp_path / "x.png"
    words = ["pca", str(tmp_path / "w"), str(tmp_path / "a.png"), f"out={out}", "device=cpu", "side=40"]
    assert view.main(words) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 40 + 6 + 2 * 18, 30 + 2 * 18)


@pytest.mark.parametrize("picture", ["attention", "match", "similar", "embedding"])
@pytest.mark.parametrize("name", ["x.png", "x.html"])
def test_every_picture_as_file_and_page(picture, name, tmp_path, picture_folder, capsys):
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    out = tmp_path / name
    words = [picture, str(tmp_path / "w"), str(picture_folder), f"out={out}", "device=cpu", "side=60", "images=4"]
    assert view.main(words) == 0
    if name == "x.html":
        assert out.read_text().startswith("<!doctype html>")
        return
    with Image.open(out) as made:
        assert len(made.convert("RGB").getcolors(1 << 20)) > 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "view: name a picture; the pictures are pca"),
        (["pc"], "did you mean pca"),
        (["pca", "m"], "name a model, then at least one image"),
        (["pca", "m", "i", "background=white"], "background"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with pytest.raises(ConfigError, match=message):
        view.main(words)
