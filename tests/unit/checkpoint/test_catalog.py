# SPDX-License-Identifier: Apache-2.0
import re
from collections import Counter

import pytest
import torch

from opendino.checkpoint.catalog import CATALOG, ENTRIES, find, nearest
from opendino.models.presets import BackboneConfig

SIZE = {"s": "small", "b": "base", "l": "large", "g": "giant"}


def numbers(preset):
    """How many numbers an official file of this architecture holds, and the width D."""
    with torch.device("meta"):
        model = BackboneConfig(preset).build()
    return sum(tensor.numel() for tensor in model.state_dict().values()), model.embed_dim


@pytest.fixture(scope="module")
def counted():
    return {preset: numbers(preset) for preset in {entry.preset for entry in ENTRIES}}


def test_every_published_model_is_there_once():
    assert len(CATALOG) == len(ENTRIES) == 40
    assert Counter((entry.source, bool(entry.heads)) for entry in ENTRIES) == {
        ("official", False): 8,
        ("official", True): 8,
        ("hf", False): 8,
        ("hf", True): 8,
        ("timm", False): 8,
    }


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_numbers_are_those_of_the_architecture(entry, counted):
    total, dim = counted[entry.preset]
    registers = entry.preset.endswith("_reg4")
    expected = total
    if entry.source == "timm":
        expected -= dim * (1 + registers)  # no mask token; with registers the position of CLS is inside CLS
    if entry.source == "hf" and entry.heads:
        expected += 2 * dim * 1000 + 1000
    assert entry.parameters == expected
    assert entry.tensor_bytes == 4 * expected


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_name_file_and_architecture_belong_together(entry):
    letter = entry.preset[3]
    registers = entry.preset.endswith("_reg4")
    assert (f"vit{letter}14" in entry.name) or (SIZE[letter] in entry.name)
    assert ("reg" in entry.name) == registers
    if entry.source == "official":
        assert entry.home == f"dinov2_vit{letter}14"
        assert entry.file == f"{entry.home}{'_reg4' if registers else ''}_pretrain.pth"
    assert entry.licence == "Apache-2.0"
    assert len(entry.mean) == len(entry.std) == 3
    assert (entry.sha256 is not None) == (entry.source == "official")
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)


def test_hashes_are_those_that_others_pin():
    """Of the two ends, and one hash a file: a classifier's backbone is the file of the backbone alone."""
    assert CATALOG["dinov2_vits14"].sha256.startswith("b938bf1b")
    assert CATALOG["dinov2_vitg14_reg"].sha256.startswith("746ecb8c")
    pairs = {(entry.file, entry.sha256) for entry in ENTRIES if entry.source == "official"}
    assert len(pairs) == len({file for file, _ in pairs}) == len({sha for _, sha in pairs}) == 8


def test_files_of_the_official_heads():
    entry = CATALOG["dinov2_vitb14_reg_lc"]
    assert entry.head_file(1) == "dinov2_vitb14_reg4_linear_head.pth"
    assert entry.head_file(4) == "dinov2_vitb14_reg4_linear4_head.pth"
    assert entry.url(entry.head_file(4)) == (
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_linear4_head.pth"
    )


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("dinov2_vits14_reg4", "dinov2_vits14_reg"),
        ("dinov2_vits14_reg4_lc", "dinov2_vits14_reg_lc"),
        ("timm/vit_base_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.lvd142m"),
        ("vit_base_patch14_reg4_dinov2", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("hf-hub:timm/vit_base_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.lvd142m"),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
    ],
)
def test_usual_spellings(spelling, name):
    assert find(spelling).name == name


def test_unknown_names():
    assert find("dinov2_vitx14") is None
    assert nearest("facebook/dinov2-bse") == "facebook/dinov2-base"
    assert nearest("resnet50") is None
