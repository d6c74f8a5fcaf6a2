# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch

from opendino.checkpoint import store
from opendino.config import load
from opendino.errors import CheckpointError
from opendino.train import state
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.loop import train_step
from opendino.train.pretrain import build_feed, build_run, open_images


@pytest.fixture
def make(tiny_words):
    def build(*more):
        config = load(PretrainConfig, None, [*tiny_words, *more])
        dataset = open_images(config)
        config = fill_in(config, len(dataset))
        run = build_run(config)
        return run, build_feed(config, dataset, run.device, 0)

    return build


def same(a, b):
    return a.keys() == b.keys() and all(
        a[part].keys() == b[part].keys() and all(a[part][key].equal(b[part][key]) for key in a[part]) for part in a
    )


def test_everything_that_changes_is_in_the_checkpoint(make, tmp_path):
    """A restored run takes the next step exactly as the original does: same loss, same weights, same moments."""
    run, feed = make()
    for _ in range(2):
        train_step(run, next(feed))
    folder = store.save(tmp_path, 2, state.collect(run.method, run.optimizer), {})
    third = next(feed)
    record = train_step(run, third)

    other, _ = make("seed=5")  # other weights to be overwritten
    other.seed, other.step = run.seed, 2
    state.restore(other.method, other.optimizer, store.opened(folder))
    assert train_step(other, third) == record
    assert same(state.collect(other.method, other.optimizer), state.collect(run.method, run.optimizer))


def test_parts_and_names(make):
    run, feed = make()
    before = state.collect(run.method, run.optimizer)
    assert before.keys() == {"student", "teacher", "targets"}  # no moments before the first step
    for _ in range(2):  # the first has a learning rate of 0
        train_step(run, next(feed))
    parts = state.collect(run.method, run.optimizer)
    assert parts["student"].keys() == parts["teacher"].keys()
    assert parts["targets"].keys() == {"dino_loss.center", "ibot_patch_loss.center"}
    assert not parts["targets"]["dino_loss.center"].equal(torch.zeros(1, 32))
    assert {key.partition("/")[0] for key in parts["optimizer"]} == {"step", "exp_avg", "exp_avg_sq"}
    assert parts["optimizer"]["exp_avg/backbone.pos_embed"].shape == parts["student"]["backbone.pos_embed"].shape
    moved = [key for key in parts["teacher"] if not parts["teacher"][key].equal(parts["student"][key])]
    assert moved


def test_a_checkpoint_of_another_shape_changes_nothing(make, tmp_path):
    run, feed = make()
    train_step(run, next(feed))
    folder = store.save(tmp_path, 1, state.collect(run.method, run.optimizer), {})
    other, _ = make("dino.prototypes=16")
    before = copy.deepcopy(other.method.state_dict())
    with pytest.raises(CheckpointError, match=r"student\.safetensors: is of another shape.*last_layer\.weight_g"):
        state.restore(other.method, other.optimizer, store.opened(folder))
    assert all(before[key].equal(tensor) for key, tensor in other.method.state_dict().items())


def test_moments_of_another_shape_are_refused(make, tmp_path):
    run, feed = make()
    train_step(run, next(feed))
    tensors = state.collect(run.method, run.optimizer)
    tensors["optimizer"]["exp_avg/backbone.cls_token"] = torch.zeros(3)
    tensors["optimizer"]["exp_avg/stranger"] = torch.zeros(3)
    folder = store.save(tmp_path, 1, tensors, {})
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: .*has also exp_avg/stranger"):
        state.restore(run.method, run.optimizer, store.opened(folder))


def test_seeds_of_steps_and_processes_are_apart():
    def draw(*key):
        state.seed_step(*key)
        return torch.rand(1).item()

    keys = [(0, 0), (0, 1), (1, 0), (0, 0, 1), (0, -1), (10, 1), (1, 1, 1)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(0, 1) == draw(0, 1, 0)
