# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe loads and builds; every setting is read somewhere; headers say what they must."""

import dataclasses
import sys
import typing
from pathlib import Path

import pytest

from opendino import config
from opendino.train.config import PretrainConfig, TrainConfig, check_settings, fill_in
from opendino.train.pretrain import pretrain

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
PRETRAIN = [path for path in RECIPES if path.parent.name == "pretrain"]
PUBLISHED = {  # facts 1.1 and 4.2: parameters of the backbone, peak learning rate
    "vitl16_in1k_short": (303_351_808, 4e-3 * 2**0.5),
    "vitl14_in22k_long": (303_655_168, 2e-4 * 3**0.5),
    "vitg14_in22k_long": (1_136_480_768 - (1370 - 257) * 1536, 2e-4 * 3**0.5),
}


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
def test_recipe_loads_and_builds(path):
    recipe = config.load(PretrainConfig, path)
    parameters = check_settings(recipe)
    if path.stem in PUBLISHED:
        from opendino.optim.adamw import peak_lr

        count, peak = PUBLISHED[path.stem]
        assert parameters == count
        assert peak_lr(recipe.optim, recipe.train.batch_size) == pytest.approx(peak)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_says_how_long_and_what_to_expect(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("run:", "takes:", "expected:", "source:"):
        assert any(word in line for line in header), f"{word} is missing"
    takes = "".join(line for line in header if "takes:" in line)
    if "not measured" in takes:
        assert "measure" in "".join(header).replace("not measured", ""), "how to measure what was not is missing"
    elif path.parent.name in ("pretrain", "adapt", "distill"):
        assert any(word in takes for word in ("core", "thread", "A100")), "the hardware is missing"


def settings_of(cls):
    """Each dataclass that a config holds, with its fields."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = hints[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from settings_of(inner)
        yield cls, field.name


SETTINGS = list(dict.fromkeys(settings_of(PretrainConfig)))
RUNS = [
    "dino.centering=centering knn.every=2 log.picture=true crops.blur=paper watch.start=0",
    "dino.centering=sinkhorn_knopp ibot.separate_head=true ibot.prototypes=16 ibot.hidden_dim=16 ibot.bottleneck_dim=8",
    "dino.objective=coding_rate train.iterations=2 crops.mixed_sizes=[8,16] crops.early_size=8 crops.early_until=1",
]
"""Between them they come by every place where a setting matters."""


def record_reads(patch, found):
    """Note which fields of which classes the package's own code takes out of a config.

    Checks of a class by itself, and code that copies, compares or prints whole configs, do not count.
    """
    source = str(ROOT / "src" / "opendino")

    def recorder(names):
        def take(self, name):
            if name in names:
                code = sys._getframe(1).f_code
                ours = code.co_filename.startswith(source) and code.co_filename != config.__file__
                if ours and "__post_init__" not in code.co_qualname:
                    found.add((type(self), name))
            return object.__getattribute__(self, name)

        return take

    for owner in dict.fromkeys(owner for owner, _ in SETTINGS):
        names = {field.name for field in dataclasses.fields(owner)}
        patch.setattr(owner, "__getattribute__", recorder(names), raising=False)


@pytest.fixture(scope="module")
def read(tiny_settings, picture_folder, tmp_path_factory):
    """What is read in whole runs."""
    found = set()
    with pytest.MonkeyPatch.context() as patch:
        record_reads(patch, found)
        for number, words in enumerate(RUNS):
            folder = tmp_path_factory.mktemp("read") / str(number)
            given = [*tiny_settings, *words.split(), f"data={picture_folder}", f"output_dir={folder}"]
            pretrain(config.load(PretrainConfig, None, given))
    return found


@pytest.mark.parametrize(("owner", "name"), SETTINGS, ids=lambda part: getattr(part, "__name__", part))
def test_every_setting_is_read(read, owner, name):
    assert (owner, name) in read, f"{owner.__name__}.{name} is read by no source file"


def test_checking_copying_and_printing_is_not_reading(monkeypatch):
    found = set()
    record_reads(monkeypatch, found)
    plain = dataclasses.replace(config.load(PretrainConfig, None, ["train.epochs=2"]), seed=1)
    assert config.leaves(plain)["train.iterations"] == 125_000
    assert plain == dataclasses.replace(plain)
    assert found == set()
    fill_in(plain, 10_000)
    assert {(PretrainConfig, "train"), (TrainConfig, "epochs"), (TrainConfig, "batch_size")} <= found
    assert (PretrainConfig, "log") not in found


def test_settings_handed_on_by_name_are_arguments():
    import inspect

    from opendino.data.datasets import open_dataset
    from opendino.models.presets import BackboneConfig
    from opendino.models.vision_transformer import VisionTransformer
    from opendino.train.config import ImagesConfig

    taken = inspect.signature(VisionTransformer).parameters
    assert {field.name for field in dataclasses.fields(BackboneConfig)} - {"preset"} == set(taken)
    assert {field.name for field in dataclasses.fields(ImagesConfig)} <= set(inspect.signature(open_dataset).parameters)
