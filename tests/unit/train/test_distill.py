# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import pytest
import torch

from opendino.checkpoint import hub, store
from opendino.checkpoint.weights import save_weights
from opendino.config import load
from opendino.errors import ConfigError
from opendino.logs import JsonLines
from opendino.methods.distill import Distill, FeatureDistill
from opendino.methods.guide import Guide
from opendino.models.presets import BackboneConfig, create
from opendino.train.config import PretrainConfig
from opendino.train.distill import (
    DistillConfig,
    DistillRunConfig,
    choices_by,
    distill,
    make_distill,
    names_of,
    plan_distill,
)
from opendino.train.pretrain import pretrain
from opendino.train.teacher import open_teacher

TIMES = ("img_per_s", "data_wait", "seconds", "looking_share")


@pytest.fixture(scope="module")
def teacher(tiny_settings, picture_folder, tmp_path_factory):
    """A run of three steps, wider than its students."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    words = [f"data={picture_folder}", f"output_dir={folder}", *tiny_settings, "student.embed_dim=48"]
    pretrain(load(PretrainConfig, None, [*words, "train.iterations=3", "student.depth=3", "watch.every=0"]))
    return folder


@pytest.fixture
def words(teacher, tiny_words):
    return [f"distill.teacher={teacher}", *tiny_words, "student.drop_path_rate=0.0", "watch.every=0"]


def run(words, **more):
    planned = plan_distill(None, [*words, *(f"{key}={value}" for key, value in more.items())])
    return distill(planned.config, {key: choice.value for key, choice in planned.choices.items()}, planned.dataset)


def records(outcome):
    found = JsonLines(outcome.output_dir / "metrics.jsonl").read()
    return [{key: value for key, value in record.items() if not key.endswith(TIMES)} for record in found]


def test_a_run_by_heads_from_start_to_end(words, teacher, tmp_path):
    before = {path: path.read_bytes() for path in sorted(teacher.rglob("*")) if path.is_file()}
    outcome = run(words)
    assert outcome.steps == 6
    assert {path: path.read_bytes() for path in sorted(teacher.rglob("*")) if path.is_file()} == before
    checkpoint = store.load(store.latest(outcome.output_dir))
    names = {name for part in checkpoint.tensors.values() for name in part}
    assert not [name for name in names if "guide" in name or "network" in name]
    assert checkpoint.tensors["teacher"]["backbone.cls_token"].shape[-1] == 32
    # What the run is for is the average, and not the student.
    weights = hub.load(outcome.output_dir).state_dict()
    assert all(torch.equal(weights[name], checkpoint.tensors["teacher"][f"backbone.{name}"]) for name in weights)
    assert not torch.equal(weights["norm.weight"], checkpoint.tensors["student"]["backbone.norm.weight"])
    stored = json.loads((outcome.output_dir / "run.json").read_text())["chosen"]
    assert stored["distill.sha256"] == open_teacher(str(teacher)).sha256
    assert (stored["distill.targets"], stored["masks.probability"]) == ("heads", 0.0)


def test_a_resumed_run_equals_one_that_was_not_interrupted(words, tmp_path):
    whole = run(words)
    again = [word for word in words if not word.startswith("output_dir")] + [f"output_dir={tmp_path / 'again'}"]
    first = run(again)
    shutil.rmtree(first.output_dir / "checkpoints" / "step_00000006")
    assert json.loads((first.output_dir / "checkpoints" / "step_00000004" / "state.json").read_text())["step"] == 4
    second = run(again)
    assert records(second) == records(whole)
    for part, tensors in store.load(store.latest(whole.output_dir)).tensors.items():
        other = store.load(store.latest(second.output_dir)).tensors[part]
        assert all(torch.equal(tensor, other[name]) for name, tensor in tensors.items()), part


def test_a_run_goes_on_with_its_own_teacher_alone(words, teacher, tmp_path):
    first = run(words)
    shutil.rmtree(first.output_dir / "checkpoints" / "step_00000006")
    copy = tmp_path / "moved"
    shutil.copytree(teacher, copy)
    moved = [word for word in words if not word.startswith("distill.teacher")]
    assert run([f"distill.teacher={copy}", *moved]).steps == 6
    other = save_weights(create("vit_nano4", depth=1), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has other weights \(\w+\.\.\.\) than at the start of this run"):
        run([f"distill.teacher={other}", *moved])


@pytest.mark.parametrize(
    "more",
    [
        {"distill.targets": "features"},
        {"distill.targets": "features", "distill.feature_loss": "cosine", "distill.projector_layers": 1},
        {"distill.targets": "features", "distill.feature_loss": "smooth_l1", "crops.local_number": 0},
        {"dino.centering": "sinkhorn_knopp", "distill.resize": 24},
        {"student.patch_size": 8, "dino.loss_weight": 0.0},
        {"distill.also": '[{"preset": "vit_nano4", "embed_dim": 16, "depth": 1, "num_heads": 1, "patch_size": 8}]'},
    ],
    ids=lambda more: " ".join(f"{key}={value}" for key, value in more.items())[:60],
)
def test_three_steps_of_every_option(words, more):
    outcome = run(words, **{"train.iterations": 3, "checkpoint.every": 3, **more})
    steps = [record for record in records(outcome) if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    terms = [value for key, value in steps[-1].items() if key.startswith("loss/")]
    assert sum(terms) == pytest.approx(steps[-1]["loss"], rel=1e-5)
    if "distill.also" in more:
        second = hub.load(outcome.output_dir / "students" / "vit_nano4")
        assert (second.embed_dim, second.patch_size, second.depth) == (16, 8, 1)
        assert second.input_spec.size == (16, 16)
        assert "grad_norm/also_vit_nano4_backbone" in steps[-1]


def test_what_the_teacher_says_is_kept_where_crops_come_again(words, tmp_path, monkeypatch):
    """Six steps of eight of forty images are 1.2 epochs; with one view each, the last eight images are found."""
    asked = []
    say = Guide.say
    monkeypatch.setattr(Guide, "say", lambda self, crops: asked.append(len(crops)) or say(self, crops))
    more = {"distill.cache": tmp_path / "kept", "crops.fixed_views": 1, "checkpoint.every": 6}
    first = run(words, **more)
    assert sum(asked) == 2 * 40
    again = [word for word in words if not word.startswith("output_dir")] + [f"output_dir={tmp_path / 'again'}"]
    second = run(again, **more)
    assert sum(asked) == 2 * 40
    assert records(second) == records(first)
    with pytest.raises(
        ConfigError, match=r"would fill and never be used, as every crop is new; set crops\.fixed_views=N"
    ):
        run([*again, f"output_dir={tmp_path / 'third'}"], **{"distill.cache": tmp_path / "kept"})


def test_what_does_not_go_with_the_teacher_is_said(words, teacher, tmp_path):
    def fails(match, *more):
        planned = plan_distill(None, [*words, *more])
        with pytest.raises(ConfigError, match=match):
            make_distill(planned.config)

    fails(r"dino_head has 32 prototypes and the student's 64; set dino\.prototypes=32", "dino.prototypes=64")
    fails("takes images of 3 channels, and the student of 1; set student.in_chans=3", "student.in_chans=1")
    fails(r"patches of 4 pixels, which do not divide the 18 pixels.*resize=16", "distill.resize=18")
    seen_later = ["student.patch_size=2", "crops.mixed_sizes=[14,16]", "crops.local_number=0"]
    fails(r"patches of 4 pixels, which do not divide the 14 pixels", *seen_later)
    fails(r"the 14 pixels", "student.patch_size=2", "crops.early_size=14", "crops.early_until=2")
    other = 'distill.also=[{"preset": "vit_nano4", "patch_size": 8}]'
    fails(r"crops\.mixed_sizes = 12 is not a multiple of the patch size 8", other, "crops.mixed_sizes=[12,16]")
    fails(r"dino\.objective = coding_rate is for opendino pretrain", "dino.objective=coding_rate")
    bare = save_weights(create("vit_nano4", depth=1), tmp_path / "bare")
    fails("has no dino_head.*or distill.targets=features", f"distill.teacher={bare}", "distill.targets=heads")
    with pytest.raises(ConfigError, match=r"distill\.teacher is missing: give teacher=RUN"):
        plan_distill(None, words[1:])


def test_what_is_learned_follows_from_the_teacher(words, tmp_path):
    assert isinstance(make_distill(plan_distill(None, words).config), Distill)
    bare = save_weights(create("vit_nano4", depth=1), tmp_path / "bare")
    planned = plan_distill(None, [*words, f"distill.teacher={bare}"])
    assert isinstance(make_distill(planned.config), FeatureDistill)
    assert planned.config.koleo.loss_weight == 0
    assert isinstance(make_distill(load(DistillRunConfig, None, [*words, f"distill.teacher={bare}"])), FeatureDistill)


def test_a_recipe_leaves_only_what_the_teacher_forces(teacher):
    opened = open_teacher(str(teacher))
    forced, free = (choices_by(opened, DistillConfig(), {}, has_recipe) for has_recipe in (True, False))
    assert forced["dino.prototypes"].value == 32
    assert forced["teacher.temp"].value == (0.07, 0.07)
    assert not [key for key in forced if key.startswith("crops.") or key == "student.patch_size"]
    assert free["crops.global_size"].value == 16
    assert free["student.patch_size"].value == 4
    assert not [key for key in free if key.startswith("crops.early_")], "they belong to the length of its run"
    assert "teacher.temp" not in choices_by(opened, DistillConfig(), {"teacher.temp_warmup": 0.3}, True)


def test_further_students_take_over_what_all_have_in_common(words):
    also = (
        'distill.also=[{"preset": "vit_nano4", "depth": 1}, {"preset": "vit_nano4", "patch_size": 8, "init_values": 1}]'
    )
    method = make_distill(plan_distill(None, [*words, also]).config)
    first, second, third = method.results().values()
    assert list(method.results()) == ["", "vit_nano4", "vit_nano4-2"]
    assert [backbone.patch_size for backbone in (first, second, third)] == [4, 4, 8]
    assert second.blocks[0].ls1.gamma[0].item() == pytest.approx(0.1)
    assert third.blocks[0].ls1.gamma[0].item() == 1.0


def test_students_of_one_preset_are_numbered():
    assert names_of([BackboneConfig("vits14"), BackboneConfig("vitb14"), BackboneConfig("vits14", depth=2)]) == [
        "vits14", "vitb14", "vits14-2",
    ]  # fmt: skip
