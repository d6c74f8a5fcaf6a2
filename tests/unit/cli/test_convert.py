# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from opendino.checkpoint.conversion import Report
from opendino.cli.convert import describe, main
from opendino.errors import ConfigError


@pytest.mark.parametrize(
    "argv", [[], ["a.pth"], ["a.pth", "b"], ["a.pth", "--to", "hf"], ["a.pth", "b", "tolerance=1"]]
)
def test_what_is_missing_is_said(argv):
    with pytest.raises(ConfigError, match="wanted SOURCE --to"):
        main(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a.pth", "--to", "jax", "b"], "to='jax' is not known; choose one of official, hf, timm"),
        (["a.pth", "b", "--to"], "--to: what comes behind it is missing; see --help"),
        (["a.pth", "--to=hf", "b", "tolerence=1"], "did you mean tolerance"),
        (["a.pth", "to=hf", "b", "c"], "'c': at most 2"),
        (["a.pth", "to=hf", "b", "--force"], "--force: no such option"),
    ],
)
def test_words_that_are_wrong(argv, message):
    with pytest.raises(ConfigError, match=message):
        main(argv)


def test_what_a_format_cannot_hold_is_not_hidden():
    dropped = ("mask_token", *(f"dino_head.{i}" for i in range(9)))
    report = Report(
        "a.pth",
        "official",
        Path("b"),
        "timm",
        173,
        dropped,
        (),
        0.0,
        (518, 518),
        0.11,
        (224, 224),
        ("a bare file does not say num_heads=3",),
    )
    assert describe(report) == [
        "a.pth (official) -> b (timm), 173 tensors",
        "left out, timm has no place for it: mask_token, dino_head.0, dino_head.1, dino_head.2, dino_head.3, "
        "dino_head.4, dino_head.5, dino_head.6 and 2 more",
        "features on a fixed 518x518 image: largest difference 0.0e+00",
        "timm resizes the position table by its own rule: at 224x224 its users see features that differ by 1.1e-01; "
        "opendino.load(..., positions=...) chooses",
        "a bare file does not say num_heads=3",
    ]


def test_what_was_compared_is_said():
    said = ("features", "masked patches", "logits")
    report = Report("b", "hf", Path("c"), "official", 174, (), (), 0.0, (98, 98), 0.0, compared=said)
    line = "features, masked patches and logits on a fixed 98x98 image: largest difference 0.0e+00"
    assert describe(report)[1:] == [line]


def test_what_was_not_in_the_source_is_not_hidden():
    report = Report("b", "timm", Path("c"), "hf", 174, (), ("mask_token",), 1e-7, (98, 98), 1e-7)
    assert describe(report)[1:] == [
        "not in the source, set to its starting value: mask_token",
        "features on a fixed 98x98 image: largest difference 1.0e-07",
    ]
