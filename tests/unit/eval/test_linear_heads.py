# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opendino.eval._linear_heads import Heads, Kind


def test_what_heads_see():
    tokens = torch.arange(10.0).reshape(1, 5, 2)  # CLS of four blocks, and the mean patch (8, 9)
    assert Kind(1, False).select(tokens).tolist() == [[6, 7]]
    assert Kind(1, True).select(tokens).tolist() == [[6, 7, 8, 9]]
    assert Kind(4, False).select(tokens).tolist() == [list(range(8))]
    assert Kind(4, True).select(tokens).tolist() == [list(range(10))]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_each_head_learns_as_it_would_alone_under_torchs_sgd(weight_decay):
    kinds, lrs = [Kind(1, False), Kind(2, True)], [0.05, 0.5]
    heads = Heads(kinds, lrs, 3, 4, seed=1, weight_decay=weight_decay)
    alone = []
    for i in range(4):
        kind, weight, bias = heads.linear(i)
        model = nn.Linear(weight.shape[1], 4)
        model.load_state_dict({"weight": weight, "bias": bias})
        assert torch.equal(bias, torch.zeros(4))
        alone.append(
            (kind, model, torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=weight_decay))
        )
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        tokens = torch.randn(8, 3, 3, generator=generator)
        labels = torch.randint(0, 4, (8,), generator=generator)
        share = 1 - step / 6
        losses = heads.step(tokens, labels, share)
        for i, (kind, model, optimizer) in enumerate(alone):
            optimizer.param_groups[0]["lr"] = lrs[i % 2] * share
            loss = F.cross_entropy(model(kind.select(tokens)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert float(losses[i]) == pytest.approx(loss.item(), abs=1e-5)
    for i, (kind, model, _) in enumerate(alone):
        torch.testing.assert_close(heads.linear(i)[1], model.weight.detach(), rtol=0, atol=1e-5)
        tokens = torch.randn(5000, 3, 3)
        torch.testing.assert_close(heads.logits(tokens, i), model(kind.select(tokens)).detach(), rtol=0, atol=1e-4)


def test_names_are_the_official_ones():
    heads = Heads([Kind(1, False), Kind(4, True)], [0.025, 1e-5], 2, 3)
    assert heads.names()[2] == "classifier_4_blocks_avgpool_True_lr_0_02500"
    assert heads.names()[1] == "classifier_1_blocks_avgpool_False_lr_0_00001"
