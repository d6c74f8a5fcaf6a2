# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math
import tracemalloc
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from opendino import config
from opendino.errors import ConfigError


@dataclass(frozen=True)
class Optim:
    base_lr: float = 1e-3
    warmup: int | float = 0.1
    kind: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self):
        if self.base_lr < 0:
            raise ValueError(f"optim.base_lr = {self.base_lr} is negative; give a rate of 0 or more")


@dataclass(frozen=True)
class Root:
    data: str = ""
    seed: int = 0
    limit: int | None = None
    optim: Optim = field(default_factory=Optim)


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_later_sources_win(tmp_path):
    path = recipe(tmp_path, "seed: 2\noptim: {base_lr: 2e-4, kind: sgd}\n")
    made = config.load(Root, path, ["optim.kind=adamw", "limit=7"], {"seed": 1, "data": "auto", "optim.base_lr": 9.0})
    assert made == Root("auto", 2, 7, Optim(base_lr=2e-4))


@pytest.mark.parametrize(
    ("text", "value"), [("2e-4", 2e-4), ("1E5", 1e5), ("-3.5e+2", -350.0), (".5e1", 5.0), ("1e", "1e"), ("e5", "e5")]
)
def test_floats_are_read_as_people_write_them(text, value):
    assert config.parse_override(f"x={text}") == ("x", value)


def test_whole_numbers_and_fractions_keep_their_type():
    assert isinstance(config.load(Root, overrides=["optim.warmup=500"]).optim.warmup, int)
    assert isinstance(config.load(Root, overrides=["optim.warmup=0.5"]).optim.warmup, float)


def test_a_name_that_looks_like_a_number_stays_a_name():
    assert config.load(Root, overrides=["data=2024"]).data == "2024"


def test_all_mistakes_are_reported_at_once_with_their_source(tmp_path):
    path = recipe(tmp_path, "optim: {base_lrr: 1, kind: lamb}\nseed: many\n")
    words = ["optim.betas=[1, 2, 3]", "nonsense", "optim=3", "zzz=1"]
    with pytest.raises(ConfigError) as caught:
        config.load(Root, path, words)
    lines = str(caught.value).splitlines()
    assert f"{path}: optim.base_lrr: no such setting; did you mean optim.base_lr?" in lines
    assert f"{path}: optim.kind = 'lamb': input should be 'adamw' or 'sgd'" in lines
    assert any(line.startswith(f"{path}: seed = 'many': input should be a valid integer") for line in lines)
    assert any(line.startswith("command line: optim.betas = [1, 2, 3]: ") for line in lines)
    assert "command line: 'nonsense' is not a setting; write key=value" in lines
    assert "command line: optim: is a group, not a setting; set its members, such as optim.base_lr" in lines
    assert "command line: zzz: no such setting; the groups are data, limit, optim, seed" in lines
    assert len(lines) == 7


@pytest.mark.parametrize(("given", "there"), [("out", "output_dir"), ("output_dir", "out")])
def test_a_setting_is_guessed_by_its_beginning(given, there):
    one = dataclasses.make_dataclass("One", [("seed", int, 0), (there, str, "")], frozen=True)
    with pytest.raises(ConfigError, match=f"{given}: no such setting; did you mean {there}\\?"):
        config.load(one, overrides=[f"{given}=x"])
    with pytest.raises(ConfigError, match="zz: no such setting; the groups are"):
        config.load(one, overrides=["zz=x"])


@pytest.mark.parametrize("given", ["resolution", "retrieve.cap", "dedup.threshold", "cluster.levels"])
def test_nothing_is_guessed_where_nothing_is_near(given):
    names = ("saturation", "device", "thread", "every")
    one = dataclasses.make_dataclass("One", [(name, int, 0) for name in names], frozen=True)
    with pytest.raises(ConfigError, match=f"{given}: no such setting; the groups are"):
        config.load(one, overrides=[f"{given}=1"])


@pytest.mark.parametrize("value", ["hot", "0.9"])
def test_a_list_is_shown_where_one_was_wanted(value):
    with pytest.raises(ConfigError) as caught:
        config.load(Root, overrides=[f"optim.betas={value}"])
    wanted = str(list(Root().optim.betas)).replace(" ", "")
    shown = str(caught.value)
    assert shown.endswith(f": is no list; write it in brackets, such as optim.betas={wanted}")
    assert config.load(Root, overrides=[shown.rpartition(" ")[2]]) == Root()


def test_a_check_of_a_group_speaks_for_itself():
    with pytest.raises(ConfigError, match=r"^optim.base_lr = -1.0 is negative; give a rate of 0 or more$"):
        config.load(Root, overrides=["optim.base_lr=-1"])


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "a recipe is a mapping"), ("a: [", "not valid YAML"), ("\x00", "not valid YAML")]
)
def test_recipes_that_are_none(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        config.load(Root, recipe(tmp_path, text))


def test_missing_recipe(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe"):
        config.load(Root, tmp_path / "none.yaml")


def test_yaml_round_trip(tmp_path):
    made = config.load(Root, overrides=["optim.betas=[0.8, 0.9]", "optim.base_lr=1e-8", "data=x: y # z"])
    assert config.load(Root, recipe(tmp_path, config.to_yaml(made))) == made
    assert config.leaves(made)["optim.betas"] == [0.8, 0.9]


def test_difference_names_both_values():
    a, b = config.leaves(Root()), config.leaves(Root(seed=4))
    assert config.difference(a, b) == {"seed": (0, 4)}


@dataclass(frozen=True)
class Switches:
    flag: bool = True
    kind: Literal["warn", "off"] = "warn"


WORDS = [("off", False), ("no", False), ("on", True), ("true", True), ("False", False)]


@pytest.mark.parametrize(("word", "flag"), WORDS)
def test_a_switch_takes_all_the_words_and_a_choice_may_be_called_off(tmp_path, word, flag):
    assert config.load(Switches, overrides=[f"flag={word}"]).flag is flag
    assert config.load(Switches, recipe(tmp_path, f"flag: {word}\nkind: off\n")) == Switches(flag, "off")
    assert config.load(Switches, recipe(tmp_path, config.to_yaml(Switches(flag, "off")))) == Switches(flag, "off")


@pytest.mark.parametrize("word", ["seed=true", "optim.base_lr=false", "optim.betas=[true, 0.9]"])
def test_on_and_off_are_no_numbers(word):
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"command line: {key} = .*: is on or off, and a number was wanted"):
        config.load(Root, overrides=[word])


@pytest.mark.parametrize("word", ["seed=.nan", "limit=nan", "optim.base_lr=NaN", "optim.betas=[0.9, .nan]"])
def test_what_is_no_number_is_refused_before_any_check_misses_it(word):
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^command line: {key} = .*: is no number, and one was wanted$"):
        config.load(Root, overrides=[word])
    assert config.load(Root, overrides=["data=nan", "optim.base_lr=.inf"]) == Root("nan", optim=Optim(math.inf))


@pytest.mark.parametrize("value", [-1, 11, math.nan, math.inf, (3, math.nan), [0, 3]])
def test_numbers_out_of_their_limits(value):
    with pytest.raises(ConfigError, match=r"^a\.b = .* is out of its range; use 1 to 10$"):
        config.check_numbers("a", {"b": value}, {"b": (1, 10)})
    with pytest.raises(ConfigError, match="use 0 or more"):
        config.check_numbers("a", {"b": -math.inf}, {"b": (0, math.inf)})


@pytest.mark.parametrize("value", [None, 1, 10, (1, 10), ()])
def test_numbers_within_their_limits(value):
    config.check_numbers("a", {"b": value}, {"b": (1, 10)})


@dataclass(frozen=True)
class Shape:
    width: int = 1

    def __post_init__(self):
        config.check_numbers("shape", vars(self), {"width": (1, 10)})


@dataclass(frozen=True)
class Pair:
    left: Shape = field(default_factory=Shape)
    shape: Shape = field(default_factory=Shape)


def test_a_check_of_a_group_says_which_group():
    with pytest.raises(ConfigError) as caught:
        config.load(Pair, overrides=["left.width=0", "shape.width=11"])
    assert str(caught.value).splitlines() == [
        "left: shape.width = 0 is out of its range; use 1 to 10",
        "shape.width = 11 is out of its range; use 1 to 10",
    ]


def test_a_home_is_opened(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["~/x", "~", "~/x/*.parquet", "a/~/x", "x~", "~other/x", ""]
    opened = ["/home/ada/x", "/home/ada", "/home/ada/x/*.parquet", "a/~/x", "x~", "~other/x", ""]
    assert list(map(config.expand_home, words)) == opened


@pytest.mark.parametrize(
    "value", ["2020-13-45", "!!int x", "!!timestamp x", "9" * 5000, "[" * 2000, "&a [*a]", "&a {b: *a}"]
)
def test_values_that_are_none_are_said_to_be(tmp_path, value):
    """What PyYAML raises for these is not its own error; an alias of itself would never end."""
    (tmp_path / "recipe.yaml").write_text(f"seed: {value}")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: "):
        config.load(Root, tmp_path / "recipe.yaml")
    assert config.parse_override(f"seed={value}") == ("seed", value)


def test_a_few_lines_of_aliases_do_not_fill_the_memory(tmp_path):
    rows = ["a0: &a0 {x: 1}"]
    rows += [f"a{n + 1}: &a{n + 1} {{{', '.join(f'k{i}: *a{n}' for i in range(10))}}}" for n in range(12)]
    (tmp_path / "recipe.yaml").write_text("\n".join(rows))
    with pytest.raises(ConfigError, match="fewer aliases"):
        config.read_yaml(tmp_path / "recipe.yaml")


def test_a_wide_list_of_wide_aliases_does_not_fill_the_memory():
    text = f"a: &a [{', '.join('0' * 2500)}]\nb: [{', '.join(['*a'] * 2500)}]"  # of six million values
    tracemalloc.start()
    try:
        with pytest.raises(yaml.YAMLError, match="fewer aliases"):
            config._parse(text)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
