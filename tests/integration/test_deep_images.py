# SPDX-License-Identifier: Apache-2.0
"""Images of 16 bits and of any number of channels: what a run learnt from can be measured and shown as it is."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.cli import eval as eval_verb
from opendino.cli import pretrain, view
from opendino.errors import DataError
from opendino.models.vision_transformer import VisionTransformer


def arrays(folder, each, channels, seed):
    """Two classes of int16 arrays from -1000 to 3000, which have no range that a reader could guess."""
    rng = np.random.default_rng(seed)
    for label in range(2):
        (folder / f"kind{label}").mkdir(parents=True)
        for i in range(each):
            array = 2000 * label + rng.integers(-1000, 1000, (16, 20, channels))
            array[4:12, 5:15] = 3000 - array[4:12, 5:15]
            np.save(folder / f"kind{label}" / f"{i}.npy", array.clip(-1000, 3000).astype(np.int16))
    return folder


@pytest.fixture
def run(tmp_path, tiny_words):
    words = [word for word in tiny_words if not word.startswith("data=")]
    data = arrays(tmp_path / "train", 8, 5, 0)
    more = ["images.value_range=[-1000,3000]", "student.in_chans=5", "train.iterations=1", "checkpoint.every=1"]
    assert pretrain.main([f"data={data}", *words, *more]) == 0
    return tmp_path / "run"


def test_a_run_on_deep_arrays_is_measured_and_shown_without_saying_their_range_again(run, tmp_path, capsys):
    val = arrays(tmp_path / "val", 4, 5, 1)
    copied = shutil.copytree(run / "weights", tmp_path / "elsewhere")
    for place, name in ((run, "whole"), (copied, "folder"), (run / "weights" / "model.safetensors", "file")):
        out, device = f"out={tmp_path / name}", "features.device=cpu"
        data = [f"data.train={tmp_path / 'train'}", f"data.val={val}"]
        assert eval_verb.main(["knn", str(place), *data, "knn.k=[1]", out, device]) == 0
        assert eval_verb.main(["health", str(place), f"data={val}", out, device]) == 0
    written = [
        json.loads(path.read_text())
        for name in ("whole", "folder", "file")
        for path in (tmp_path / name).glob("*.json")
    ]
    assert {record["protocol"] for record in written} == {"knn", "health"}
    for record in written:
        settings = record["config"] if record["protocol"] == "health" else record["config"]["data"]
        assert settings["value_range"] == [-1000.0, 3000.0]
        assert record["data"]["skipped"] == []
    whole = next(json.loads(path.read_text()) for path in (tmp_path / "whole").glob("health*.json"))
    assert 1 <= whole["figures"]["prototypes_unique"] <= 32  # of a run's own checkpoint, and of nothing else
    assert "prototypes are not measured" in capsys.readouterr().out
    picture = tmp_path / "x.png"
    assert view.main(["pca", str(run), str(val / "kind0" / "0.npy"), f"out={picture}", "device=cpu", "side=40"]) == 0
    with Image.open(picture) as sheet:
        shown = np.asarray(sheet)[18:50, 18:58]
    # The first three channels as they are decoded: dark outside, on average 0; inside 3000 - x, cut at 3000.
    assert shown[:6].mean() == pytest.approx(255 * (0 + 1000) / 4000, abs=16)
    assert shown[12:20, 14:26].mean() == pytest.approx(255 * (2750 + 1000) / 4000, abs=16)


def test_pixel_and_pair_protocols_read_deep_arrays_as_the_run_did(run, tmp_path):
    val, out = arrays(tmp_path / "val", 4, 5, 1), tmp_path / "out"
    words = [f"out={out}", "features.device=cpu"]
    assert (
        eval_verb.main(["retrieval", str(run), f"data.queries={val}", f"data.database={tmp_path / 'train'}", *words])
        == 0
    )
    points = [[3.0, 3.0], [12.0, 9.0]]
    pair = {"source": "kind0/0.npy", "target": "kind0/1.npy", "source_points": points, "target_points": points}
    (val / "pairs.json").write_text(json.dumps([pair]))
    words.append("features.size=16")
    assert eval_verb.main(["correspond", str(run), f"data={val / 'pairs.json'}", "correspond.short=16", *words]) == 0
    shutil.copytree(val / "kind0", tmp_path / "scenes" / "images")
    (tmp_path / "scenes" / "depth").mkdir()
    for i in range(4):
        np.save(tmp_path / "scenes" / "depth" / f"{i}.npy", np.linspace(1, 5, 320, dtype=np.float32).reshape(16, 20))
    scenes = [f"data.train={tmp_path / 'scenes'}", f"data.val={tmp_path / 'scenes'}", "data.max_depth=6"]
    short = ["depth.head=lin1", "depth.iterations=2", "depth.batch_size=2"]
    assert eval_verb.main(["depth", str(run), *scenes, *short, *words]) == 0
    written = {
        record["protocol"]: record["config"] for record in map(json.loads, (p.read_text() for p in out.glob("*.json")))
    }
    assert set(written) == {"retrieval", "correspond", "depth"}
    assert written["retrieval"]["data"]["value_range"] == written["depth"]["data"]["value_range"] == [-1000.0, 3000.0]
    assert written["correspond"]["value_range"] == [-1000.0, 3000.0]
    assert written["retrieval"]["data"]["orient"] is True
    assert written["depth"]["data"]["orient"] is False  # depth maps lie on the pixels as they are stored


def test_the_command_line_has_the_last_word(run, tmp_path):
    with pytest.raises(DataError, match="none of the 16 images could be read"):
        eval_verb.main(["health", str(run), f"data={tmp_path / 'train'}", "value_range=null", "features.device=cpu"])


def test_grey_models(tmp_path):
    save_weights(
        VisionTransformer(img_size=16, patch_size=4, in_chans=1, embed_dim=64, depth=1, num_heads=1), tmp_path / "w"
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(photos / f"{i}.png")
    out = tmp_path / "out"
    assert eval_verb.main(["health", str(tmp_path / "w"), f"data={photos}", f"out={out}", "features.device=cpu"]) == 0
    (path,) = out.glob("*.json")
    figures = json.loads(path.read_text())["figures"]
    assert 1.0 < figures["cls_effective_rank"] <= 4.0
    assert figures["cls_mean_cosine"] < 1.0 - 1e-6
    picture = tmp_path / "x.png"
    assert view.main(["pca", str(tmp_path / "w"), str(photos), f"out={picture}", "device=cpu", "side=24"]) == 0
    with Image.open(picture) as sheet:
        shown = np.asarray(sheet)[18:42, 18:42].astype(int)
    with Image.open(photos / "0.png") as photo:
        assert np.abs(shown - np.asarray(photo.convert("L"), int)[..., None]).max() <= 1
