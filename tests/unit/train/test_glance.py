# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch

from opendino.config import load
from opendino.data.augment import CropsConfig
from opendino.data.samplers import permute
from opendino.data.transforms import EvalTransform
from opendino.eval import health
from opendino.eval.watch import WatchConfig
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.glance import Glance, pace, work
from opendino.train.pretrain import build_run, open_images


@pytest.fixture
def parts(tiny_words):
    config = load(PretrainConfig, None, tiny_words)
    dataset = open_images(config)
    return config, dataset, build_run(fill_in(config, 40)).method


def glance_of(config, dataset, **words):
    return Glance(WatchConfig(**words), dataset, config.crops, config.train.batch_size, "fp32")


def test_figures_are_those_of_the_networks_on_the_first_images_of_the_permutation(parts):
    config, dataset, method = parts
    with torch.no_grad():
        for parameter in method.student.parameters():  # else student and teacher agree
            parameter.add_(0.05 * torch.randn_like(parameter))
        method.dino_loss.center.copy_(torch.randn(1, 32))
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    generator = torch.get_rng_state()
    found = glance_of(config, dataset, images=12)(method, 0.05)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
    assert method.student["backbone"].training

    spec = method.teacher["backbone"].input_spec
    transform = EvalTransform(16, 16, spec.mean, spec.std)
    images = torch.stack([transform(dataset.image(int(row))) for row in permute(np.arange(12), 40, 0, 0)])
    method.eval()
    with torch.no_grad():
        features = method.teacher["backbone"].forward_features(images)
        cls = features["x_norm_clstoken"]
        teacher = ((method.teacher["dino_head"](cls) - method.dino_loss.center) / 0.05).softmax(1)
        student = (method.student["dino_head"](method.student["backbone"](images)) / 0.1).log_softmax(1)
        divergence = (teacher * (teacher.log() - student)).sum(1).mean()
    assert found["watch/teacher_kl"] == pytest.approx(float(divergence), rel=1e-4)
    for name, value in health.summary(cls, teacher).items():
        assert found[f"watch/{name}"] == pytest.approx(value, rel=1e-4), name
    assert found["watch/prototypes_unique"] == 32
    lengths = features["x_prenorm"][:, 1:].norm(dim=2)
    wanted = float((lengths > 2 * lengths.median()).double().mean())
    assert found["watch/patch_high_norm_share"] == pytest.approx(wanted)
    flat = torch.nn.functional.normalize(features["x_norm_patchtokens"].flatten(0, 1), dim=1)
    assert found["watch/patch_std"] == pytest.approx(float(flat.std(0, correction=0).mean() * 32**0.5), rel=1e-4)


def test_student_and_teacher_that_agree_have_no_divergence_at_the_students_temperature(parts):
    config, dataset, method = parts
    found = glance_of(config, dataset)(method, 0.1)  # the centre is still zero
    assert found["watch/teacher_kl"] == pytest.approx(0, abs=1e-5)


def test_a_method_without_prototypes_is_looked_at_too(parts):
    config, dataset, method = parts
    del method.teacher["dino_head"]
    found = glance_of(config, dataset)(method, 0.1)
    assert found["watch/effective_rank"] > 1
    assert not [name for name in found if "prototype" in name or "entropy" in name or name.endswith("kl")]


def test_images_that_cannot_be_read_are_passed_over(parts, monkeypatch):
    config, dataset, method = parts
    readable, gone = dataset.image, set()

    def read(row):
        if row in gone:
            raise OSError(f"{row} is gone")
        return readable(row)

    monkeypatch.setattr(dataset, "image", read)
    rows = permute(np.arange(16), 40, 0, 0).tolist()
    gone |= set(rows[::2])
    glance = glance_of(config, dataset, images=16)
    assert "watch/effective_rank" in glance(method, 0.1)
    assert len(glance._pictures) == 8
    gone |= set(rows)
    assert glance_of(config, dataset, images=16)(method, 0.1) == {}


def test_looking_stays_below_its_share_of_the_work():
    crops = CropsConfig(global_size=224, local_size=112, local_number=8)
    # An image: two teacher passes, and three times the student's two global and 8/4 local ones.
    assert work(crops, 1) == 2 + 3 * (2 + 2)
    assert pace(WatchConfig(), crops, 64) == (128, 20)  # 256 passes in 20 steps of 896
    for batch in (2, 4, 8, 16, 32):
        found = pace(WatchConfig(), crops, batch)
        assert found.images == max(min(4 * batch, 128), 16)
        assert 2 * found.images <= 0.02 * found.every * work(crops, batch)
        assert 2 * found.images > 0.02 * (found.every - 1) * work(crops, batch)
        assert found.every <= 100  # two looks and a collapse is named, within 200 steps
    assert pace(WatchConfig(share=1.0, every=3), crops, 2) == (16, 3)
    assert pace(WatchConfig(every=0), crops, 64).every == 0
    assert pace(WatchConfig(images=4), crops, 64).images == 4


def test_it_says_that_it_looks_less_often_than_wished(parts, caplog):
    config, dataset, _ = parts
    caplog.set_level("INFO", logger="opendino")
    small = dataclasses.replace(config.crops, local_number=0)
    glance = Glance(WatchConfig(every=2), dataset, small, 2, "fp32")
    assert glance.pace == (16, 100)
    assert "each 100 steps, not each watch.every = 2: with 2 images a step" in caplog.text
    assert [step for step in range(250) if glance.due(step)] == [0, 100, 200]
    assert not Glance(WatchConfig(every=0), dataset, small, 2, "fp32").due(0)
