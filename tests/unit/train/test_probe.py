# SPDX-License-Identifier: Apache-2.0
import shutil

import numpy as np
import pytest
import torch

from opendino.config import load
from opendino.data.datasets import open_dataset
from opendino.errors import ConfigError, DataError
from opendino.eval import health, knn
from opendino.eval._features import FeatureConfig, extract
from opendino.eval._sampled import sampled
from opendino.train import probe as module
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.pretrain import build_run
from opendino.train.probe import Probe, ProbeConfig, Rows, last_look

CPU = torch.device("cpu")


@pytest.fixture
def method(tiny_words):
    return build_run(fill_in(load(PretrainConfig, None, tiny_words), 40)).method


def test_figures_are_those_of_the_protocol_on_the_same_images(method, picture_folder):
    dataset = open_dataset(picture_folder)
    probe = Probe(ProbeConfig(every=1, k=(3,)), dataset, CPU, "fp32")
    record = probe(method, 0.05)
    val, train = probe._val, probe._train
    features = [extract(method.teacher["backbone"], part, FeatureConfig(progress=False)).cls for part in (train, val)]
    labels = [torch.from_numpy(part.targets) for part in (train, val)]
    expected, _ = knn.evaluate(features[0], labels[0], features[1], labels[1], knn.VoteConfig(k=(3,)))
    assert record["knn/top1_k3"] == expected["top1_k3"]
    logits = method.teacher["dino_head"](features[1])
    probabilities = torch.softmax(logits / 0.05, dim=-1).mean(dim=0)
    entropy = -(probabilities * probabilities.log()).sum() / np.log(32)
    assert record["health/entropy_of_mean"] == pytest.approx(entropy.item(), rel=1e-4)
    assert 1 <= record["health/prototypes_used"] <= 8
    assert record["health/prototypes_unique"] == 32
    drawn = sampled(method.teacher["backbone"], val, FeatureConfig(progress=False), images=64, views=4)
    assert drawn.keys() == {"lidar", "alignment", "patch_similarity", "patch_high_norm_share"}
    assert {name: record[f"health/{name}"] for name in drawn} == pytest.approx(drawn)


def test_the_split_is_fixed_and_apart(picture_folder):
    dataset = open_dataset(picture_folder)
    parts = [Probe(ProbeConfig(), dataset, CPU, "fp32") for _ in range(2)]
    names = [[[part.identify(i) for i in range(len(part))] for part in (p._train, p._val)] for p in parts]
    assert names[0] == names[1]
    assert (len(names[0][0]), len(names[0][1])) == (32, 8)
    assert not set(names[0][0]) & set(names[0][1])


def test_limits(picture_folder):
    probe = Probe(ProbeConfig(max_train=5, max_val=3, k=(20,)), open_dataset(picture_folder), CPU, "fp32")
    assert (len(probe._train), len(probe._val)) == (5, 3)
    assert probe._votes.k == (5,)
    assert "held out" in probe.note


def test_named_parts(picture_folder, method, tmp_path):
    """Classes are matched by name: the named images lack the first class, so their own numbers are one lower."""
    for label in (1, 2, 3):
        shutil.copytree(picture_folder / f"class{label}", tmp_path / f"class{label}")
    probe = Probe(ProbeConfig(val=str(tmp_path), k=(1,)), open_dataset(picture_folder), CPU, "fp32")
    assert (len(probe._train), len(probe._val)) == (40, 30)
    # Each image is its own nearest neighbour among the run's images.
    assert probe(method, 0.05)["knn/top1_k1"] == 100.0
    fewer = Probe(ProbeConfig(val=str(tmp_path), max_train=12, max_val=7), open_dataset(picture_folder), CPU, "fp32")
    assert (len(fewer._train), len(fewer._val)) == (12, 7)
    assert [fewer._val.label(i) for i in range(7)] == [
        int(fewer._val.identify(i).split("class")[1][0]) for i in range(7)
    ]


@pytest.mark.parametrize("named", [{"train": "{}", "val": "{}/"}, {"val": "{}/../{name}"}])
def test_images_that_would_find_themselves_are_refused(picture_folder, named):
    words = {key: text.format(picture_folder, name=picture_folder.name) for key, text in named.items()}
    with pytest.raises(ConfigError, match="are the same: each image would find itself"):
        Probe(ProbeConfig(**words), open_dataset(picture_folder), CPU, "fp32")


def _table(path, folder, seed):
    """Thirty arrays with values of their own range, under columns that nobody would guess."""
    rng, lines = np.random.default_rng(seed), []
    for i in range(30):
        array = folder / f"{path.stem}{i}.npy"
        np.save(array, (1000 * (i % 3) + rng.integers(-200, 200, (16, 16, 3))).astype(np.int16))
        lines.append(f"nothing.npy,{array},0,kind{i % 3}")
    path.write_text("\n".join(["path,scan,label,kind", *lines]) + "\n")
    return str(path)


def test_named_images_are_read_as_those_of_the_run(tmp_path, method):
    train, val = (_table(tmp_path / f"{name}.csv", tmp_path, seed) for seed, name in enumerate(("train", "val")))
    how = {"path_column": "scan", "value_range": (-200.0, 2200.0)}
    dataset = open_dataset(train, label_column="kind", **how)
    probe = Probe(ProbeConfig(val=val, k=(1,)), dataset, CPU, "fp32")
    assert probe._val.label(4) == 1
    assert float(probe._val.image(4).mean()) == pytest.approx(1200 / 2400, abs=0.02)
    assert probe(method, 0.05)["knn/top1_k1"] == 100.0  # three brightnesses, far apart
    unlabelled = open_dataset(train, label_column="none", **how)
    with pytest.raises(DataError, match=r"train\.csv: has no labels"):
        Probe(ProbeConfig(val=val), unlabelled, CPU, "fp32")
    held_out = Probe(ProbeConfig(train=val, k=(1,)), dataset, CPU, "fp32")
    assert len(held_out._train) + len(held_out._val) == 30


def test_without_labels_there_is_health_alone(tmp_path, picture_folder, method):
    for place, path in enumerate(sorted(picture_folder.rglob("*.png"))):
        (tmp_path / f"{place}.png").write_bytes(path.read_bytes())
    probe = Probe(ProbeConfig(), open_dataset(tmp_path), CPU, "fp32")
    record = probe(method, 0.05)
    assert not [key for key in record if key.startswith("knn/")]
    looked_at = extract(method.teacher["backbone"], probe._val, FeatureConfig(progress=False)).cls
    assert record["health/effective_rank"] == pytest.approx(health.effective_rank(looked_at), rel=1e-6)
    assert "no labels" in probe.note
    with pytest.raises(DataError, match="has no labels"):
        Probe(ProbeConfig(val=str(tmp_path)), open_dataset(picture_folder), CPU, "fp32")
    with pytest.raises(ConfigError, match=r"knn\.train = .* has no labels"):
        Probe(ProbeConfig(train=str(tmp_path)), open_dataset(picture_folder), CPU, "fp32")


def test_classes_must_agree(tmp_path, picture_folder):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes((picture_folder / "class0" / "00.png").read_bytes())
    with pytest.raises(DataError, match="is not among the 4 classes"):
        Probe(ProbeConfig(val=str(tmp_path)), open_dataset(picture_folder), CPU, "fp32")


def test_looking_changes_nothing(method, picture_folder):
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    Probe(ProbeConfig(), open_dataset(picture_folder), CPU, "fp32")(method, 0.05)
    assert all(before[key].equal(tensor) for key, tensor in method.state_dict().items())
    assert [module.training for module in method.modules()] == modes


def test_rows_are_a_view(picture_folder):
    dataset = open_dataset(picture_folder)
    rows = Rows(dataset, np.array([7, 3]))
    assert [rows.identify(0), rows.identify(1)] == [dataset.identify(7), dataset.identify(3)]
    assert (rows.read(1), rows.label(1)) == (dataset.read(3), dataset.label(3))
    assert rows.image(0).tobytes() == dataset.image(7).tobytes()


def test_last_look():
    records = [{"step": 0, "knn/top1_k20": 3.0}, {"step": 1, "loss": 2.0}, {"step": 1, "health/x": 1.0}, {"step": 2}]
    assert last_look(records) == {"health/x": 1.0}
    assert last_look([]) == {}


def test_cadences():
    with pytest.raises(ConfigError, match=r"knn\.every = -1"):
        ProbeConfig(every=-1)


def test_images_that_are_open_already_are_not_opened_again(picture_folder, monkeypatch):
    dataset = open_dataset(picture_folder)
    monkeypatch.setattr(module, "open_part", lambda *_: pytest.fail("opened again"))
    train, val = module._parts(ProbeConfig(train=f"{picture_folder}/../{picture_folder.name}"), dataset)
    assert (len(train), len(val)) == (32, 8)


def test_images_whose_labels_the_run_leaves_alone_are_opened_for_them(tmp_path, picture_folder):
    source = tmp_path / "table.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted(picture_folder.rglob("*.png"))]
    source.write_text("\n".join(["path,label", *rows]))
    dataset = open_dataset(source, label_column="none")
    train, _ = module._parts(ProbeConfig(train=str(source)), dataset)
    assert sorted(set(train.targets.tolist())) == [0, 1, 2, 3]
