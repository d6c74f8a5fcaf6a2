# SPDX-License-Identifier: Apache-2.0
from importlib import import_module

import pytest

from opendino.checkpoint.convert import FORMATS, format_of, hf, timm


@pytest.mark.parametrize("registers", [0, 4])
def test_a_file_says_which_format_it_is_of(draw, registers):
    state = draw(num_register_tokens=registers).state_dict()
    assert format_of(state) == "official"
    assert format_of({"teacher": state}) == "official"
    assert format_of({f"backbone.{name}": tensor for name, tensor in state.items()}) == "official"
    assert format_of(timm.from_official(state).state) == "timm"
    for in_memory in (False, True):
        theirs = hf.from_official(state, in_memory=in_memory).state
        assert format_of(theirs) == "hf"
        assert format_of({f"dinov2.{name}": tensor for name, tensor in theirs.items()}) == "hf"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_its_table_and_both_directions(name):
    module = import_module(FORMATS[name])
    assert module.KEYS
    assert callable(module.to_official)
    assert callable(module.from_official)
