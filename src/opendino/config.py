# SPDX-License-Identifier: Apache-2.0
"""Settings: frozen dataclasses, filled from defaults, a YAML recipe and `key=value` words, checked all at once.

A setting lives in the dataclass of the file that reads it; a verb composes those into one root dataclass and calls
`load`. Later sources win: dataclass defaults, `defaults`, the recipe, the command line. Every mistake of every source
is reported in one error that names the source, the dotted key, what came and what was wanted.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import yaml

from opendino.errors import ConfigError

C = TypeVar("C")
_COMMAND_LINE = "command line"

Limits = tuple[int | float, int | float]
"""Smallest and largest number that will do."""

_NEAR = 0.75
"""How alike two names are, by difflib's ratio, where one may be a slip of the other; below it a guess misleads."""

_BEGINNING = 3
"""Letters of a setting's beginning that are enough to guess it by."""

_MOST_VALUES, _DEEPEST = 100_000, 50
"""Of a recipe with its aliases opened: a few lines of them can stand for more settings than memory holds."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with values as people write them: plain PyYAML reads `2e-4` as a string, and `off` as false.

    Switches take on, off, yes and no all the same, see `_validate`; but `off` may also be a choice among words.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401  as its parent's
        """As its parent's, to a depth: its time grows with the square of that."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"is nested more than {_DEEPEST} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.yaml_implicit_resolvers = {key: list(rules) for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_BOOL = "tag:yaml.org,2002:bool"
for _rules in _Loader.yaml_implicit_resolvers.values():
    _rules[:] = [rule for rule in _rules if rule[0] != _BOOL]
_Loader.add_implicit_resolver(_BOOL, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load(
    cls: type[C],
    recipe: Path | str | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> C:
    """Build a config dataclass from its sources.

    Args:
        cls: root dataclass; every field has a default, nested groups are dataclasses.
        recipe: YAML file of nested settings, or None.
        overrides: words `dotted.key=value`; values are read as YAML (`0.1`, `[0.1, 0.5]`, `null`).
        defaults: dotted keys to values, stronger than the dataclass defaults and weaker than the recipe.

    Raises:
        ConfigError: the recipe cannot be read, or at least one setting is unknown or of the wrong type; the message
            has one line for each.
    """
    settings: dict[str, tuple[Any, str]] = {key: (value, "defaults") for key, value in (defaults or {}).items()}
    if recipe is not None:
        settings |= {key: (value, str(recipe)) for key, value in flatten(read_yaml(Path(recipe))).items()}
    problems: list[str] = []
    known = dict(_walk(cls))
    for word in overrides:
        try:
            key, value = parse_override(word)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if known.get(key) is str:
            value = word.partition("=")[2]  # a folder called 2024 is a name, not a number
        # A mapping on the command line sets its members one by one, like the recipe's.
        settings |= {name: (leaf, _COMMAND_LINE) for name, leaf in flatten({key: value}).items()}
    for key, (_, source) in settings.items():
        if key not in known:
            problems.append(f"{source}: {key}: {_suggest(key, list(known))}")
    accepted = {key: value for key, value in settings.items() if key in known}
    for key in [key for key, (value, _) in accepted.items() if _has_switch(value) and _is_number(known[key])]:
        value, source = accepted.pop(key)  # Python takes True for 1, a reader does not
        problems.append(f"{source}: {key} = {value!r}: is on or off, and a number was wanted")
    for key in [key for key, (value, _) in accepted.items() if _has_nan(value) and _is_number(known[key])]:
        value, source = accepted.pop(key)  # no comparison holds for it, so no check of a group would find it
        problems.append(f"{source}: {key} = {value!r}: is no number, and one was wanted")
    config, wrong_types = _validate(cls, accepted)
    problems += wrong_types
    if problems:
        raise ConfigError("\n".join(problems))
    return typing.cast("C", config)


def check_numbers(group: str, values: Mapping[str, Any], limits: Mapping[str, Limits]) -> None:
    """Check that numbers, and the members of lists of numbers, are finite and within their limits, ends included.

    Args:
        group: dotted name of what the values belong to, for the message.
        values: names to numbers, lists of them or None, which passes.
        limits: names to the smallest and largest that will do; `math.inf` where only finite is asked for.

    Raises:
        ConfigError: a value is out of its limits.
    """
    for name, (low, high) in limits.items():
        value = values[name]
        numbers = value if isinstance(value, tuple | list) else () if value is None else (value,)
        if all(math.isfinite(number) and low <= number <= high for number in numbers):
            continue
        wanted = f"{low:.12g} or more" if high == math.inf else f"{low:.12g} to {high:.12g}"
        raise ConfigError(f"{group}.{name} = {value} is out of its range; use {wanted}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; `opendino config ls` lists the shipped ones") from None
    except (OSError, ValueError) as error:  # also a name that holds a zero byte
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings, this is a {type(content).__name__}")
    return content


def parse_override(word: str) -> tuple[str, Any]:
    """Split `dotted.key=value` and read the value as YAML.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    key, separator, text = word.partition("=")
    if not separator or not key:
        raise ConfigError(f"{_COMMAND_LINE}: '{word}' is not a setting; write key=value")
    try:
        return key, _parse(text)
    except yaml.YAMLError:
        # A path or a name may hold characters that mean something to YAML.
        return key, text


def _parse(text: str) -> Any:  # noqa: ANN401  whatever the text stands for
    """What YAML stands for.

    Raises:
        YAMLError: it is none, is nested or opened by aliases beyond all measure, or holds a value that is none, such
            as the thirteenth month.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # PyYAML lets them through
        raise yaml.YAMLError(str(error)) from None
    values, level = 0, [content]
    for _ in range(_DEEPEST):
        members = (member for node in level for member in _members(node))
        level = list(islice(members, _MOST_VALUES - values + 1))  # one level may open to more than memory holds
        values += len(level)
        if not level:
            return content
        if values > _MOST_VALUES:
            break
    raise yaml.YAMLError(f"opens to more than {_MOST_VALUES} values or {_DEEPEST} levels; use fewer aliases")


def _members(node: Any) -> Iterable[Any]:  # noqa: ANN401  whatever YAML gives
    return node.values() if isinstance(node, dict) else node if isinstance(node, list | set | tuple) else ()


def expand_home(text: str) -> str:
    """A path as it is meant: shells leave the ~ of `data=~/images` alone."""
    return str(Path(text).expanduser()) if text == "~" or text.startswith("~/") else text


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys; empty mappings vanish."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def fields_of(cls: type) -> list[str]:
    """Dotted names of every setting that a config dataclass holds, groups opened."""
    return [name for name, _ in _walk(cls)]


def to_dict(config: object) -> dict[str, Any]:
    """Nested plain dict of a config, tuples as lists, ready for YAML or JSON."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)  # pyrefly: ignore[bad-argument-type]
    }


def to_yaml(config: object) -> str:
    """YAML text of a config; `load` on it gives an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=120)


def leaves(config: object) -> dict[str, Any]:
    """Dotted keys to plain values of a config."""
    return flatten(to_dict(config))


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between two dotted mappings, with both values (None where one has no such key)."""
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def _walk(cls: type, prefix: str = "") -> Iterable[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        group = _group_type(hints[field.name])
        if group is not None:
            yield from _walk(group, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


def _group_type(hint: Any) -> type | None:  # noqa: ANN401 (a type hint has no type of its own)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((part for part in map(_group_type, typing.get_args(hint)) if part is not None), None)
    return None


def _has_switch(value: Any) -> bool:  # noqa: ANN401 (any setting)
    return isinstance(value, bool) or (isinstance(value, tuple | list) and any(map(_has_switch, value)))


def _has_nan(value: Any) -> bool:  # noqa: ANN401 (any setting)
    if isinstance(value, tuple | list):
        return any(map(_has_nan, value))
    return isinstance(value, float | str) and str(value).strip().lower().lstrip("+-") == "nan"


def _is_number(hint: Any) -> bool:  # noqa: ANN401 (a type hint has no type of its own)
    """Whether a setting of this type is a number or a list of numbers."""
    return hint in (int, float) or any(_is_number(part) for part in typing.get_args(hint))


def _plain(value: Any) -> Any:  # noqa: ANN401 (any setting)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _suggest(key: str, known: Sequence[str]) -> str:
    members = [name for name in known if name.startswith(f"{key}.")]
    if members:
        return f"is a group, not a setting; set its members, such as {members[0]}"
    ends = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=_NEAR)
    if not close:
        close = [ends[end] for end in difflib.get_close_matches(key.rpartition(".")[2], ends, n=1, cutoff=_NEAR)]
    if not close and len(key) >= _BEGINNING:  # results go to out= in one place and to output_dir= in another
        close = [name for name in known if name.startswith(key) or (key.startswith(name) and len(name) >= _BEGINNING)]
    if close:
        return f"no such setting; did you mean {close[0]}?"
    return f"no such setting; the groups are {', '.join(sorted({name.partition('.')[0] for name in known}))}"


def _validate(cls: type, settings: Mapping[str, tuple[Any, str]]) -> tuple[object | None, list[str]]:
    """The config and no problems, or None and one line for each setting that does not fit."""
    from pydantic import TypeAdapter, ValidationError

    tree: dict[str, Any] = {}
    for key, (value, _) in settings.items():
        node = tree
        *groups, last = key.split(".")
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    try:
        return TypeAdapter(cls).validate_python(tree), []
    except ValidationError as error:
        return None, list(dict.fromkeys(_explain(problem, settings, cls) for problem in error.errors()))


def _explain(problem: Mapping[str, Any], settings: Mapping[str, tuple[Any, str]], cls: type) -> str:
    parts = [str(part) for part in problem["loc"]]
    key = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in settings), "")
    cause = problem.get("ctx", {}).get("error")
    if not key:
        # A check of a whole group (its __post_init__); it may not know under which name it stands here.
        where = ".".join(parts)
        text = str(cause) if cause is not None else problem["msg"].lower()
        return text if text.startswith(where) else f"{where}: {text}"
    value, source = settings[key]
    wanted = str(cause) if cause is not None else problem["msg"][0].lower() + problem["msg"][1:]
    if problem["type"] == "tuple_type":
        default = _plain(flatten(to_dict(cls())).get(key))
        wanted = "is no list; write it in brackets" + (
            f", such as {key}={str(default).replace(' ', '')}" if default else ""
        )
    return f"{source}: {key} = {value!r}: {wanted}"
