# SPDX-License-Identifier: Apache-2.0
"""Every setting of a command with its default and meaning, read from the config classes; used by `config.py`."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from typing import Any, NamedTuple, get_args, get_type_hints

_ARGUMENTS = {"BackboneConfig": ("opendino.models.vision_transformer", "VisionTransformer")}
_ATTRIBUTE = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")


class Setting(NamedTuple):
    """One setting.

    Attributes:
        key: dotted name.
        kind: values that it takes.
        default: as it is written in a recipe.
        meaning: sentence of its class.
    """

    key: str
    kind: str
    default: str
    meaning: str


def settings_of(cls: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a config class, groups opened, in their order."""
    hints, meanings = get_type_hints(cls), meanings_of(cls)
    for item in fields(cls):
        group = _group(hints[item.name])
        if group is None:
            key, meaning = f"{prefix}{item.name}", meanings.get(item.name, "")
            yield Setting(key, _kind(hints[item.name]), _default(item), meaning)
        else:
            yield from settings_of(group, f"{prefix}{item.name}.")


def groups_of(cls: type) -> dict[str, tuple[str, list[Setting]]]:
    """Settings by group, each with what the group is: the first sentence of its class; "" is the class itself."""
    hints = get_type_hints(cls)
    own = [setting for setting in settings_of(cls) if "." not in setting.key]
    found = {"": (_first_line(cls), own)}
    for item in fields(cls):
        group = _group(hints[item.name])
        if group is not None:
            found[item.name] = (_first_line(group), list(settings_of(group, f"{item.name}.")))
    return found


def meanings_of(cls: type) -> dict[str, str]:
    """What the docstring of a class and of those above it says of each attribute."""
    found: dict[str, str] = {}
    if cls.__name__ in _ARGUMENTS:  # its fields are the arguments of another class
        module, name = _ARGUMENTS[cls.__name__]
        found = _listed(getattr(import_module(module), name), "Args:")
    for one in reversed(cls.__mro__[:-1]):
        found |= _listed(one, "Attributes:")
    return found


def _listed(cls: type, header: str) -> dict[str, str]:
    """Names and what follows them below a header of a docstring."""
    lines, names = (inspect.getdoc(cls) or "").splitlines(), []
    found: dict[str, str] = {}
    for line in lines[lines.index(header) + 1 :] if header in lines else []:
        match = _ATTRIBUTE.match(line)
        if match:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith("        ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line and not line.startswith(" "):
            break
    return found


def page(titles: dict[str, type]) -> str:
    """The reference as Markdown: a section a command, a table a group.

    A command whose class stands on that of an earlier one lists only what is new or has another default.

    Args:
        titles: command to its config class.
    """
    seen: dict[type, set[Setting]] = {}
    parts = [
        "# Every setting\n\n"
        "Written by `opendino config explain`, from the classes that hold the settings. A word on the command line is\n"
        "`key=value`, a recipe is YAML: `train: {batch_size: 64}`. What a run without a recipe chooses by itself is\n"
        "printed when it starts.\n"
    ]
    for command, cls in titles.items():
        parts.append(f"## opendino {command}\n")
        base = next((one for one in cls.__mro__[1:] if one in seen), None)
        if base is not None:
            earlier = next(name for name, one in titles.items() if one is base)
            parts.append(f"The settings of `opendino {earlier}`, and these:\n")
        seen[cls] = set(settings_of(cls))
        for name, (what, all_of_them) in groups_of(cls).items():
            settings = [one for one in all_of_them if base is None or one not in seen[base]]
            if settings:
                head = f"### {name}\n\n{what}\n" if name else f"{what}\n"
                parts.append(f"{head}\n| setting | values | default | meaning |\n|---|---|---|---|")
                parts[-1] += "".join(f"\n{_row(setting)}" for setting in settings) + "\n"
    return "\n".join(parts)


def _row(setting: Setting) -> str:
    kind, meaning = (text.replace("|", "\\|") for text in (setting.kind, setting.meaning))
    return f"| `{setting.key}` | {kind} | `{setting.default}` | {meaning} |"


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _group(hint: Any) -> type | None:  # noqa: ANN401  a type hint has no type of its own
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _kind(hint: Any) -> str:  # noqa: ANN401  a type hint has no type of its own
    """`Literal["a", "b"]` as a, b; other types by their names."""
    if getattr(hint, "__name__", "") == "Literal" or str(hint).startswith("typing.Literal"):
        return ", ".join(str(value) for value in get_args(hint))
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    text = re.sub(r"typing\.Literal\[([^]]*)\]", lambda match: match[1].replace("'", ""), text)
    return text.replace("typing.", "").replace("NoneType", "none").replace("None", "none").replace(" | ", " or ")


def _default(item: Field) -> str:
    value = item.default if item.default is not MISSING else None
    if item.default is MISSING and item.default_factory is not MISSING:
        value = item.default_factory()
    if isinstance(value, tuple):
        return f"[{', '.join(_plain(one) for one in value)}]"
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
