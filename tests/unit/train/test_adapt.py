# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from opendino.checkpoint.hub import load_backbone
from opendino.checkpoint.weights import read_config, save_weights
from opendino.errors import ConfigError
from opendino.logs import JsonLines
from opendino.models.presets import create
from opendino.optim.schedules import cosine, linear
from opendino.train import adapt as module
from opendino.train.adapt import adapt, build_adaptation, in_two_phases
from opendino.train.adapt_config import typed
from opendino.train.adapt_plan import plan_adaptation
from opendino.train.config import fill_in
from opendino.train.loop import Schedules, train_step
from opendino.train.pretrain import build_feed, open_images

HEADS = ["dino.prototypes=32", "dino.hidden_dim=32", "dino.bottleneck_dim=16"]
CROPS = ["crops.local_number=2", "crops.global_size=16", "crops.local_size=8"]
QUICK = ["train.batch_size=8", "train.device=cpu", "train.threads=1", "train.precision=fp32", "loader.workers=0"]
QUICK += ["log.trackers=[]", "log.picture=false", "log.every=1", "knn.every=0", "checkpoint.every=1"]
QUICK += ["checkpoint.keep=9", "drift.sample=12"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(4)
    backbone = create("vit_nano4", depth=2, embed_dim=32, num_heads=2, img_size=16, init_values=0.5)
    return save_weights(backbone, tmp_path_factory.mktemp("weights") / "model")


def planned(init, data, out, *words):
    return plan_adaptation(None, [f"init={init}", f"data={data}", f"output_dir={out}", *QUICK, *HEADS, *CROPS, *words])


def run(plan):
    return adapt(typed(plan.config), {key: choice.value for key, choice in plan.choices.items()})


def records(folder):
    timing = ("img_per_s", "data_wait", "time", "seconds", "looking_seconds", "looking_share")
    lines = JsonLines(Path(folder) / "metrics.jsonl").read()
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def test_resume_is_equal_across_the_border_of_the_phases(weights, picture_folder, tmp_path):
    """Two steps of heads alone, three of everything, with LoRA; killed in the first phase and behind the border."""
    words = ["train.iterations=5", "adapt.head_steps=2", "adapt.lora=2", "optim.base_lr=1e-2"]
    whole = run(planned(weights, picture_folder, tmp_path / "whole", *words))
    for killed in (1, 3):
        broken = tmp_path / f"killed_{killed}"
        shutil.copytree(tmp_path / "whole", broken)
        for step in range(killed + 1, 6):
            shutil.rmtree(broken / "checkpoints" / f"step_{step:08d}")
        (broken / "drift.json").unlink()
        again = run(planned(weights, picture_folder, broken, *words))
        assert records(broken) == records(tmp_path / "whole")
        assert again.drift == whole.drift
        for one, other in zip(
            *(load_backbone(f).state_dict().items() for f in (tmp_path / "whole", broken)), strict=True
        ):
            assert torch.equal(one[1], other[1]), one[0]
    # LoRA's run is one of official names, and says where it came from.
    assert list(load_backbone(tmp_path / "whole").state_dict()) == list(load_backbone(weights).state_dict())
    norms = [line["grad_norm/backbone"] for line in records(tmp_path / "whole") if "loss" in line]
    assert norms[:2] == [0, 0]
    assert min(norms[2:]) > 0


def test_patches_are_held_to_the_start_also_behind_a_resume(weights, picture_folder, tmp_path):
    """The anchor is in no checkpoint: it is opened again, and the losses are equal."""
    words = ["train.iterations=4", "adapt.head_steps=1", "optim.base_lr=1e-2", "gram.loss_weight=3", "gram.size=32"]
    whole = run(planned(weights, picture_folder, tmp_path / "whole", *words))
    terms = [line["loss/gram"] for line in records(tmp_path / "whole") if "loss/gram" in line]
    assert len(terms) == 4
    assert min(terms) > 0
    broken = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", broken)
    for step in (3, 4):
        shutil.rmtree(broken / "checkpoints" / f"step_{step:08d}")
    run(planned(weights, picture_folder, broken, *words))
    assert records(broken) == records(tmp_path / "whole")
    assert "gram" not in "".join(load_backbone(whole.outcome.output_dir).state_dict())
    with pytest.raises(ConfigError, match=r"gram\.size = 33 is no multiple of the patch of 4; use 32"):
        run(planned(weights, picture_folder, tmp_path / "bad", "gram.loss_weight=1", "gram.size=33"))


def test_the_backbone_is_the_start_to_the_last_bit_while_heads_learn(weights, picture_folder, tmp_path):
    plan = planned(weights, picture_folder, tmp_path / "run", "train.iterations=4", "adapt.head_steps=2")
    config = fill_in(plan.config, 40)
    step, feed = build_adaptation(config), build_feed(config, open_images(config), torch.device("cpu"), 0)
    begun = load_backbone(weights).state_dict()
    heads = step.method.student["dino_head"].mlp[0].weight.clone()
    for number in range(4):
        train_step(step, next(feed))
        for network in (step.method.student, step.method.teacher):
            same = [torch.equal(tensor, begun[name]) for name, tensor in network["backbone"].state_dict().items()]
            assert all(same) == (number < 2)
    assert not torch.equal(step.method.student["dino_head"].mlp[0].weight, heads)


def test_a_run_goes_on_at_a_larger_size(tiny_run, picture_folder, tmp_path):
    out = tmp_path / "larger"
    plan = plan_adaptation(
        None,
        [
            f"init={tiny_run}",
            f"output_dir={out}",
            "resolution=24",
            "train.iterations=2",
            *QUICK,
        ],
    )
    adapted = run(plan)
    backbone = load_backbone(out)
    assert (backbone.grid, backbone.input_spec.size) == ((6, 6), (24, 24))
    assert read_config(out / "weights")["backbone"]["img_size"] == 24
    report = json.loads((out / "drift.json").read_text())
    assert report["origin"]["source"] == str(tiny_run.resolve())
    assert report["step"] == adapted.outcome.steps == 2
    assert adapted.drift["cls_cka"] > 0.9, "two steps at a tenth of the rate"


def test_nothing_learnt_is_nothing_moved(tiny_run, tmp_path):
    """With a rate of nought and a larger table the run's weights are what the start resized on the fly says."""
    out = tmp_path / "still"
    words = ["resolution=24", "train.iterations=1", "optim.base_lr=0", "optim.min_lr=0", "teacher.momentum=[1,1]"]
    adapted = run(plan_adaptation(None, [f"init={tiny_run}", f"output_dir={out}", *words, *QUICK]))
    assert all(value == pytest.approx(1, abs=1e-6) for value in adapted.drift.values())
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(load_backbone(out)(images), load_backbone(tiny_run)(images))


def test_images_of_other_channels(weights, tmp_path):
    """Five channels, with LoRA: the patch embedding was fitted, so it learns too."""
    import numpy as np

    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        np.save(folder / f"{number}.npy", np.random.default_rng(number).random((16, 16, 5), dtype=np.float32))
    plan = planned(weights, folder, tmp_path / "run", "train.iterations=2", "adapt.lora=2", "adapt.head_steps=0")
    assert plan.config.student.in_chans == 5
    adapted = run(plan)
    assert adapted.drift["cls_cka"] > 0.5
    saved = load_backbone(tmp_path / "run")
    assert saved.patch_embed.proj.weight.shape[1] == 5
    with pytest.raises(ConfigError, match=r"adapt\.channels = keep cannot fit weights for 5 channels to 3"):
        run(
            planned(tmp_path / "run" / "weights", tmp_path, tmp_path / "b", "student.in_chans=3", "adapt.channels=keep")
        )


def test_heads_have_a_rate_of_their_own(weights, picture_folder, tmp_path):
    words = ["train.iterations=4", "optim.base_lr=2e-4", "adapt.head_lr=1e-3", "optim.layerwise_decay=0.5"]
    config = fill_in(planned(weights, picture_folder, tmp_path / "run", *words).config, 40)
    rates = {
        name: group["lr_multiplier"]
        for group in build_adaptation(config).optimizer.param_groups
        for name in group["param_names"]
    }
    assert rates["dino_head.mlp.0.weight"] == rates["dino_head.last_layer.weight_v"] == pytest.approx(5)
    assert (rates["backbone.norm.weight"], rates["backbone.blocks.0.attn.qkv.weight"]) == (1, 0.25)


def test_two_phases_by_hand():
    rate, frozen = cosine(1.0, 0.0, 10, 2), cosine(1.0, 0.0, 10, 2, freeze=3)
    later = Schedules(rate, linear(0.1, 0.3, 10), frozen, linear(0.99, 1.0, 10), linear(0.04, 0.07, 10))
    both = in_two_phases(later, head_steps=20, peak=0.5, momentum=0.9)
    assert both.at(0) == {"lr": 0, "weight_decay": 0.1, "last_layer_lr": 0, "momentum": 0.9, "teacher_temp": 0.04}
    assert both.at(1)["lr"] == both.at(19)["last_layer_lr"] == 0.5
    assert both.at(20) == later.at(0)
    assert both.at(27) == later.at(7)
    assert in_two_phases(later, 0, 0.5, 0.9).at(3) == later.at(3)


def test_other_weights_under_the_same_name_are_refused(weights, picture_folder, tmp_path):
    plan = planned(weights, picture_folder, tmp_path / "run", "train.iterations=1")
    other = dataclasses.replace(typed(plan.config).origin, sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"has other weights .* than at the start of this run"):
        adapt(dataclasses.replace(typed(plan.config), origin=other))
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_a_start_that_is_gone_costs_the_report_alone(weights, picture_folder, tmp_path, monkeypatch):
    moved = shutil.copytree(weights, tmp_path / "moved")
    plan = planned(moved, picture_folder, tmp_path / "run", "train.iterations=1", "adapt.head_steps=0")
    real = module.pretrain
    monkeypatch.setattr(module, "pretrain", lambda *a, **k: (real(*a, **k), shutil.rmtree(moved))[0])
    adapted = run(plan)
    assert adapted.drift == {}
    assert adapted.warnings[0].startswith("no drift report:")
    assert adapted.outcome.steps == 1


def test_a_finished_run_is_compared_once(weights, picture_folder, tmp_path, monkeypatch):
    words = ("train.iterations=1", "adapt.head_steps=0")
    first = run(planned(weights, picture_folder, tmp_path / "run", *words))
    assert first.outcome.trained
    real, compared = module.drift.between, []
    monkeypatch.setattr(module.drift, "between", lambda *a: compared.append(1) or real(*a))
    again = run(planned(weights, picture_folder, tmp_path / "run", *words))
    assert (again.outcome.trained, again.drift, again.warnings, compared) == (False, first.drift, first.warnings, [])
    (tmp_path / "run" / "drift.json").write_text("{}")
    mended = run(planned(weights, picture_folder, tmp_path / "run", *words))
    assert (mended.drift, compared) == (first.drift, [1])
