# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.data.datasets._base import DEFAULT
from opendino.errors import ConfigError, DataError
from opendino.eval import retrieval
from opendino.eval._features import FeatureConfig
from opendino.eval.retrieval import Listed, RankConfig, RetrievalConfig, RetrievalDataConfig, Truth
from opendino.models.vision_transformer import VisionTransformer

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


@pytest.fixture
def backbone():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)


def picture(colour, rng):
    return Image.fromarray(np.clip(colour + rng.normal(0, 15, (16, 16, 3)), 0, 255).astype(np.uint8))


def config(data):
    return RetrievalConfig(RetrievalDataConfig(**data), RankConfig("patch_mean", (1, 3)), FeatureConfig(device="cpu"))


def test_setups_of_the_revisited_sets():
    ranked = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    truths = [Truth(easy=(1,), hard=(0,), junk=(2,)), Truth(hard=(2,), junk=(3,))]
    found = retrieval.revisited(ranked, truths, (1,))
    # Easy: only the first query has an answer; its hard image 0 and junk 2 are passed over: 1 comes first.
    assert found["mAP_easy"] == 100
    # Medium: the first finds 0 and 1 first; the second finds 2 first once 3 is gone.
    assert found["mAP_medium"] == 100
    assert found["mAP_hard"] == 100
    worse = retrieval.revisited(np.array([[3, 0, 1, 2]]), truths[:1], (1,))
    assert worse["mAP_easy"] == pytest.approx(100 * (0 + 1 / 2) / 2)
    assert worse["mP@1_easy"] == 0


def test_labels_say_what_is_right(tmp_path, backbone):
    rng = np.random.default_rng(0)
    for part, names in (("database", ("blue", "green")), ("queries", ("blue", "green", "red"))):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                picture(COLOURS[name], rng).save(tmp_path / part / name / f"{i}.png")
    places = {"queries": str(tmp_path / "queries"), "database": str(tmp_path / "database")}
    results = retrieval.run(backbone, config(places), out=tmp_path / "out")
    found = results.figures
    assert found["mAP"] == found["recall@1"] == found["accuracy"] == found["GAP-"] == 100
    assert 50 < found["GAP"] <= 100  # red is nobody's, and less sure than the others or not
    with pytest.raises(ConfigError, match="are the same: each image would find itself"):
        retrieval.run(backbone, config({**places, "queries": str(tmp_path / "queries" / ".." / "database")}))
    for part in ("database", "queries"):
        (tmp_path / part / "blue" / "1.png").write_bytes(b"no image")
    again = retrieval.run(backbone, config(places))
    assert again.figures["mAP"] == 100
    assert (again.data["query_images"], again.data["database_images"], len(again.data["skipped"])) == (8, 5, 2)
    assert again.notes == ("2 images could not be read and were left out",)
    labels = (["a", "b"], ["c"])
    with pytest.raises(DataError, match="no query has a label that occurs"):
        retrieval.by_label(np.zeros((2, 1), int), np.zeros(2), labels, (1,))


def test_ground_truth_with_boxes(tmp_path, backbone):
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for i, name in enumerate(("blue", "blue", "green", "red")):
        picture(COLOURS[name], rng).save(images / f"db{i}.jpg", quality=95)
    both = Image.new("RGB", (32, 16))
    both.paste(picture(COLOURS["green"], rng), (0, 0))
    both.paste(picture(COLOURS["red"], rng), (16, 0))
    both.save(images / "q.png")
    truth = {
        "imlist": [f"db{i}" for i in range(4)],
        "qimlist": ["q", "q"],
        "gnd": [
            {"bbx": [0, 0, 16, 16], "easy": [2], "hard": [], "junk": []},
            {"bbx": [16, 0, 32, 16], "easy": [3], "hard": [], "junk": [0]},
        ],
    }
    file = tmp_path / "gnd.json"
    file.write_text(json.dumps(truth))
    data = {"ground_truth": str(file), "images": str(images)}
    found = retrieval.run(backbone, config(data)).figures
    assert found["mAP_easy"] == found["mAP_medium"] == 100
    assert "mAP_hard" not in found
    assert Listed(images, ["q"], [[0.0, 0.0, 16.0, 16.0]]).image(0).size == (16, 16)
    with pytest.raises(DataError, match="db9: is missing"):
        Listed(images, ["db9"])
    file.write_text(json.dumps({**truth, "gnd": truth["gnd"][:1]}))
    with pytest.raises(DataError, match="does not fit its qimlist"):
        retrieval.read_truth(file, images, DEFAULT)
    for number, (fault, says) in enumerate(
        (
            ({"easy": [-1]}, "does not fit its qimlist"),
            ({"easy": [4]}, "does not fit its qimlist"),
            ({"bbx": [16, 0, 32]}, r"bbx of q is \[16\.0, 0\.0, 32\.0\]; left, top, right and bottom"),
            ({"bbx": [32, 0, 16, 16]}, "bbx of q is"),
            ({"bbx": [0, 0, float("nan"), 16]}, "bbx of q is"),
            ({"bbx": [0, 0, 0.2, 16]}, "bbx of q is"),
        )
    ):
        file = tmp_path / f"fault{number}.json"
        file.write_text(json.dumps({**truth, "gnd": [truth["gnd"][0], truth["gnd"][1] | fault]}))
        with pytest.raises(DataError, match=says):
            retrieval.read_truth(file, images, DEFAULT)
    file.write_text(json.dumps({**truth, "gnd": [truth["gnd"][0], {"easy": [3]}]}))  # one box is missing
    with pytest.raises(DataError, match=r"is no ground truth .*bbx"):
        retrieval.read_truth(file, images, DEFAULT)
    with pytest.raises(DataError, match="is a pickle"):
        retrieval.read_truth(tmp_path / "gnd_roxford5k.pkl", images, DEFAULT)
    file.write_text("[]")
    with pytest.raises(DataError, match="is no ground truth"):
        retrieval.read_truth(file, images, DEFAULT)


def test_nothing_named(backbone):
    with pytest.raises(ConfigError, match=r"give data\.queries and data\.database"):
        retrieval.run(backbone, config({}))
    ranked, best = retrieval.rank_all(torch.eye(2), torch.tensor([[0.0, 1], [1, 0], [1, 0]]))
    assert ranked.tolist() == [[1, 2, 0], [0, 1, 2]]
    assert best.tolist() == [1, 1]
