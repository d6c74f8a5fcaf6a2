# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.checkpoint.weights import save_weights
from opendino.cli import embed
from opendino.embed import read
from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer


def test_a_folder_of_features(tmp_path, picture_folder, capsys):
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a.png").write_bytes((picture_folder / "class0" / "00.png").read_bytes())
    (tmp_path / "odd" / "b.png").write_bytes(b"no")
    words = [str(tmp_path / "odd"), "--model", str(tmp_path / "w"), f"--out={tmp_path / 'out'}", "device=cpu"]
    assert embed.main(words) == 0
    told = capsys.readouterr().out
    assert "b.png: no image format" in told
    assert "1 image, 1 skipped" in told
    assert read(tmp_path / "out")[1]["cls"].shape == (1, 64)
    assert embed.main(words) == 0
    assert "nothing was left to do" in capsys.readouterr().out


def test_a_single_image_and_two_that_are_not_a_data_set(tmp_path, picture_folder, capsys):
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    one, two = map(str, sorted((picture_folder / "class0").iterdir())[:2])
    rest = ["--model", str(tmp_path / "w"), "--out", str(tmp_path / "out"), "device=cpu"]
    with pytest.raises(ConfigError, match=r"png: one data set is taken at a time"):
        embed.main([one, two, *rest])
    assert embed.main([one, *rest]) == 0
    assert "1 image\n" in capsys.readouterr().out
    table, features = read(tmp_path / "out")
    assert table["path"].to_pylist() == [one]
    assert features["cls"].shape == (1, 64)


@pytest.mark.parametrize("words", [[], ["data"], ["data", "--model", "m"], ["data", "out=x"]])
def test_what_is_missing(words):
    with pytest.raises(ConfigError, match="wanted DATA --model MODEL --out DIR"):
        embed.main(words)
