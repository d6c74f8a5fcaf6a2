# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe loads and builds; every setting is read somewhere; headers say what they must."""

import ast
import dataclasses
import typing
from pathlib import Path

import pytest

from opendino.config import load
from opendino.train.config import PretrainConfig, check_settings

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
PUBLISHED = {  # facts 1.1 and 4.2: parameters of the backbone, peak learning rate
    "vitl16_in1k_short": (303_351_808, 4e-3 * 2**0.5),
    "vitl14_in22k_long": (303_655_168, 2e-4 * 3**0.5),
    "vitg14_in22k_long": (1_136_480_768 - (1370 - 257) * 1536, 2e-4 * 3**0.5),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_builds(path):
    config = load(PretrainConfig, path)
    parameters = check_settings(config)
    if path.stem in PUBLISHED:
        from opendino.optim.adamw import peak_lr

        count, peak = PUBLISHED[path.stem]
        assert parameters == count
        assert peak_lr(config.optim, config.train.batch_size) == pytest.approx(peak)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_says_how_long_and_what_to_expect(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("run:", "takes:", "expected:", "source:"):
        assert any(word in line for line in header), f"{word} is missing"


def settings_of(cls, seen=()):
    """Each dataclass that a config holds, with its fields."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = hints[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from settings_of(inner)
        yield cls, field.name


def names_read():
    """Every name that some source file takes out of something: `x.name`, or "name" as a word of its own."""
    read = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    return read


READ = names_read()
BY_NAME = {"BackboneConfig", "ImagesConfig"}  # handed on field by field, under the same names, to one function


@pytest.mark.parametrize(
    ("owner", "name"),
    list(dict.fromkeys(settings_of(PretrainConfig))),
    ids=lambda part: getattr(part, "__name__", part),
)
def test_every_setting_is_read(owner, name):
    if owner.__name__ not in BY_NAME:
        assert name in READ, f"{owner.__name__}.{name} is read by no source file"


def test_settings_handed_on_by_name_are_arguments():
    import inspect

    from opendino.data.datasets import open_dataset
    from opendino.models.presets import BackboneConfig
    from opendino.models.vision_transformer import VisionTransformer
    from opendino.train.config import ImagesConfig

    taken = inspect.signature(VisionTransformer).parameters
    assert {field.name for field in dataclasses.fields(BackboneConfig)} - {"preset"} == set(taken)
    assert {field.name for field in dataclasses.fields(ImagesConfig)} <= set(inspect.signature(open_dataset).parameters)
