# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.losses import centering
from opendino.losses.centering import Centering


def test_hand_worked_two_batches():
    module = Centering(3)
    first = torch.tensor([[0.0, 0.0, 0.05 * math.log(2)], [0.0, 0.0, 0.0]])
    # The centre is zero for the first batch: softmax at temperature 0.05 gives 1/4, 1/4, 1/2 and thirds.
    assert torch.allclose(module(first, 0.05), torch.tensor([[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]]))
    # Then 0.9 of zero plus 0.1 of the mean (0, 0, 0.025 ln 2).
    assert torch.allclose(module.center, torch.tensor([[0.0, 0.0, 0.0025 * math.log(2)]]))
    second = torch.zeros(1, 3)
    odds = torch.tensor([1.0, 1.0, 2**-0.05])
    assert torch.allclose(module(second, 0.05), odds[None] / odds.sum())
    assert torch.allclose(module.center, torch.tensor([[0.0, 0.0, 0.00225 * math.log(2)]]))


def test_the_batch_does_not_use_its_own_mean():
    module = Centering(4)
    logits = torch.randn(5, 4)
    assert torch.equal(module(logits, 0.1), torch.softmax(logits / 0.1, dim=-1))
    assert not torch.equal(module(logits, 0.1), torch.softmax(logits / 0.1, dim=-1))


def test_a_prototype_that_takes_all_loses_its_lead():
    module = Centering(4)
    logits = torch.randn(64, 4) * 0.01 + torch.tensor([0.5, 0.0, 0.0, 0.0])
    assert module(logits, 0.04)[:, 0].mean() > 0.99
    for _ in range(100):
        module(logits, 0.04)
    assert module(logits, 0.04).mean(dim=0).max() < 0.5


def test_shapes_of_the_official_buffers():
    assert {name: tuple(t.shape) for name, t in Centering(7).state_dict().items()} == {"center": (1, 7)}
    assert {name: tuple(t.shape) for name, t in Centering(7, patches=True).state_dict().items()} == {
        "center": (1, 1, 7)
    }


def test_patches_and_images_compute_the_same():
    images, patches, logits = Centering(5), Centering(5, patches=True), torch.randn(6, 5)
    for _ in range(2):
        assert torch.equal(images(logits, 0.05), patches(logits, 0.05))
    assert torch.equal(images.center.flatten(), patches.center.flatten())


def test_evaluation_leaves_the_centre():
    module = Centering(3).eval()
    module(torch.randn(4, 3), 0.05)
    assert torch.equal(module.center, torch.zeros(1, 3))


def test_no_rows_leave_the_centre():
    module = Centering(3, patches=True)
    module(torch.randn(4, 3), 0.05)
    before = module.center.clone()
    assert module(torch.randn(0, 3), 0.05).shape == (0, 3)
    assert torch.equal(module.center, before)


def test_the_centre_does_not_feel_padding():
    plain, padded, logits = Centering(3), Centering(3), torch.randn(4, 3)
    real = torch.tensor([True, False, True, True, False, True])
    filled = torch.full((6, 3), torch.inf).masked_scatter(real[:, None], logits)
    targets = padded(filled, 0.05, real)
    assert torch.allclose(targets[real], plain(logits, 0.05))
    assert torch.allclose(padded.center, plain.center, atol=1e-7)
    padded(filled, 0.05, torch.zeros(6, dtype=torch.bool))
    assert torch.allclose(padded.center, plain.center, atol=1e-7), "nothing but padding leaves it"


def test_rows_of_all_processes_count_the_same(monkeypatch):
    logits = torch.randn(7, 3)
    whole, sharded = Centering(3, patches=True), Centering(3, patches=True)
    whole.update(logits)
    other = torch.cat([logits[2:].sum(dim=0), torch.tensor([5.0])])
    monkeypatch.setattr(centering, "all_reduce_sum", lambda own: own + other)
    sharded.update(logits[:2])
    assert torch.allclose(sharded.center, whole.center, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_used_in_float32(dtype):
    module, exact = Centering(50), Centering(50)
    logits = torch.randn(300, 50).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets = module(logits, 0.04)
    assert targets.dtype == module.center.dtype == torch.float32
    assert torch.equal(targets, exact(logits.float(), 0.04))
    assert torch.allclose(module.center, exact.center, atol=1e-7)
