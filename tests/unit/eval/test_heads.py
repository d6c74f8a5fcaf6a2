# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from opendino.checkpoint import store
from opendino.checkpoint.store import CheckpointConfig
from opendino.config import load, to_yaml
from opendino.errors import ConfigError
from opendino.eval import health
from opendino.eval._features import FeatureConfig, extract
from opendino.eval._heads import read_heads
from opendino.eval.health import HealthConfig
from opendino.train import state
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.pretrain import build_run, open_images

FEATURES = FeatureConfig(device="cpu", progress=False)


def saved(words, folder):
    """A run at step 0, its student and its centre moved, with a checkpoint in its folder."""
    config = load(PretrainConfig, None, words)
    run = build_run(fill_in(config, 40))
    with torch.no_grad():
        for parameter in run.method.student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if hasattr(run.method, "dino_loss"):
            run.method.dino_loss.center.copy_(0.1 * torch.randn(1, 32))
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    store.save(folder, 3, state.collect(run.method, run.optimizer), {}, CheckpointConfig())
    return run.method, open_images(config)


def test_figures_of_prototypes_are_those_of_the_runs_own_heads(tiny_words, tmp_path, picture_folder):
    method, dataset = saved(tiny_words, tmp_path / "a")
    backbone = method.teacher["backbone"]
    config = HealthConfig(str(picture_folder), heads=str(tmp_path / "a"), sample=0, features=FEATURES)
    results = health.run(backbone, config)
    cls = extract(backbone, dataset, FEATURES).cls
    with torch.no_grad():
        teacher = ((method.teacher["dino_head"](cls) - method.dino_loss.center) / 0.07).softmax(1)
        seen = extract(method.student["backbone"], dataset, FEATURES).cls
        student = (method.student["dino_head"](seen) / 0.1).log_softmax(1)
    entropy = health.entropy_ratio(teacher)
    assert results.figures["entropy_of_mean"] == pytest.approx(entropy.of_mean, rel=1e-4)
    assert results.figures["mean_entropy"] == pytest.approx(entropy.mean, rel=1e-4)
    divergence = (teacher * (teacher.log() - student)).sum(1).mean()
    assert results.figures["teacher_kl"] == pytest.approx(float(divergence), rel=1e-4)
    assert results.figures["prototypes_unique"] == 32
    assert results.notes == ()
    without = health.run(backbone, dataclasses.replace(config, heads=""))
    assert "teacher_kl" not in without.figures
    assert without.notes == (health.NO_PROTOTYPES,)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_head_of_any_depth_is_read_again(tiny_words, tmp_path, layers):
    method, _ = saved([*tiny_words, f"dino.nlayers={layers}", "dino.centering=sinkhorn_knopp"], tmp_path / "a")
    heads = read_heads(tmp_path / "a", method.teacher["backbone"])
    x = torch.randn(5, 32)
    with torch.no_grad():
        plain = (method.teacher["dino_head"](x) / 0.07).softmax(1)
    assert torch.allclose(heads.teacher_probabilities(x), plain, atol=1e-6)


def test_heads_of_another_run_and_of_no_run_are_refused(tiny_words, tmp_path):
    method, _ = saved([*tiny_words, "dino.loss_weight=0", "ibot.separate_head=true"], tmp_path / "a")
    assert read_heads(tmp_path / "a", method.teacher["backbone"]) is None  # patches have prototypes, images none
    saved(tiny_words, tmp_path / "b")
    with torch.no_grad():
        method.teacher["backbone"].cls_token.add_(1)
    with pytest.raises(ConfigError, match=r"the model is not the teacher of step_00000003; name the run that it is of"):
        read_heads(tmp_path / "b", method.teacher["backbone"])
    config = HealthConfig(str(tmp_path), heads=str(tmp_path / "b"), sample=0, features=FEATURES)
    backbone = method.teacher["backbone"]
    with pytest.raises(ConfigError, match="is not the teacher"):
        health._heads_of(config, backbone, "another/model")
    none, notes = health._heads_of(config, backbone, str(tmp_path / "b"))  # what the command line asks by itself
    assert none is None
    assert "not measured" in notes[0]
    with pytest.raises(ConfigError, match="is no run with a checkpoint"):
        read_heads(tmp_path, method.teacher["backbone"])
