# SPDX-License-Identifier: Apache-2.0
"""What may not change is asked for before anything does."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from opendino.errors import ModelError
from opendino.layers.fixed import Fixed


class Held(Fixed):
    """A module with a parameter in float32, one layer below, and a tensor in bfloat16 that torch does not know of."""

    def __init__(self):
        super().__init__()
        self.below = nn.Linear(2, 2)
        self.deep = nn.Module()
        self.deep.held = torch.ones(3, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.half(),
        lambda one: one.bfloat16(),
        lambda one: one.double(),
        lambda one: one.float(),  # of what is held in bfloat16
        lambda one: one.to(torch.float16),
        lambda one: one.to("meta"),
        lambda one: one.to_empty(device="meta"),
        lambda one: one.type(torch.float64),
        lambda one: one.cuda(),  # there or not
    ],
)
def test_a_change_is_refused_before_it_begins(change):
    held = Held()
    before = {name: tensor.clone() for name, tensor in held.named_parameters()}
    with pytest.raises(ModelError, match="stays on cpu in the types it was made in; move or convert the model"):
        change(held)
    assert all(torch.equal(tensor, before[name]) for name, tensor in held.named_parameters())
    assert held.below.weight.dtype == torch.float32
    assert held.to("cpu").cpu().to(memory_format=torch.channels_last) is held


def test_what_copies_saves_or_loads_says_what_to_do_instead():
    held = nn.Sequential(Held())
    for wrong in (copy.deepcopy, pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
        with pytest.raises(ModelError, match="neither copied nor pickled; copy or save the model that it was made"):
            wrong(held)
    with pytest.raises(ModelError, match="cannot be saved; save the model"):
        held.state_dict()
    weight = held[0].below.weight.clone()
    with pytest.raises(ModelError, match="takes no other weights; load them into a model"):
        held.load_state_dict({"0.below.weight": torch.zeros(2, 2)})
    assert torch.equal(held[0].below.weight, weight)
