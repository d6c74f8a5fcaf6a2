# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.cli import search
from opendino.embed import EmbedConfig, embed
from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer
from opendino.search import Group
from opendino.search.index import Hit


def test_build_ask_and_find_duplicates(tmp_path, picture_folder, capsys, monkeypatch):
    shutil.copytree(picture_folder / "class0", tmp_path / "images")
    shutil.copy(tmp_path / "images" / "00.png", tmp_path / "images" / "zz.png")
    torch.manual_seed(0)
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), tmp_path / "w")
    folder = str(tmp_path / "f")
    embed(str(tmp_path / "w"), str(tmp_path / "images"), folder, EmbedConfig(size=16, device="cpu"))
    assert search.main(["build", folder]) == 0
    assert "11 vectors of 64 numbers (cls), exact" in capsys.readouterr().out
    words = ["query", folder, str(tmp_path / "images" / "00.png"), "row:0", "k=2", f"page={tmp_path / 'p.html'}"]
    assert search.main([*words, "device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {tuple(line.split()[:3]) for line in lines[1:3]} == {("1.0000", "row", "0"), ("1.0000", "row", "10")}
    assert lines[4].endswith("zz.png"), "an image of the index is not told that it is like itself"
    assert (tmp_path / "p.html").read_text().count("<img") == 6
    spare = tmp_path / "spare.txt"
    words = ["duplicates", folder, "threshold=0.999999", f"list={spare}", f"page={tmp_path / 'd.html'}"]
    assert search.main(words) == 0
    printed = capsys.readouterr().out
    assert "1 group; 1 of 11 images are spare\n" in printed
    assert "does not fit" not in printed
    assert search.main(["duplicates", folder, "threshold=-0.5"]) == 0
    assert "threshold=-0.5 does not fit it; try threshold=0.85, or another model" in capsys.readouterr().out
    assert spare.read_text() == f"{tmp_path / 'images' / 'zz.png'}\n"
    chain = Group([Hit(score, at, at, f"{at}.png") for at, score in enumerate((1.0, 0.95, 0.3))])
    monkeypatch.setattr("opendino.search.find_duplicates", lambda *_: [chain])
    assert search.main(["duplicates", folder]) == 0
    assert "1 of these are like the image to keep only by way of others" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="row:N was wanted"):
        search.main(["query", folder, "row:x"])
    with pytest.raises(ConfigError, match=r"gone\.jpg: there is no such file; a query is an image file, or row:N"):
        search.main(["query", folder, str(tmp_path / "gone.jpg")])
    with pytest.raises(ConfigError, match="images: is a folder; a query is an image file"):
        search.main(["query", folder, str(tmp_path / "images")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "opendino search: say what to do; there are build, query, duplicates"),
        (["query", "x", "row:1", "page=x.txt"], r"page = x\.txt: is written as HTML"),
        (["query", "x", "row:1", "k=0"], "k = 0: give 1 or more"),
        (["biuld"], "did you mean build"),
        (["query", "x"], r"wanted INDEX QUERY"),
        (["build"], "wanted EMBEDDED"),
    ],
)
def test_words_that_do_not_fit(words, message):
    with pytest.raises(ConfigError, match=message):
        search.main(words)
