# SPDX-License-Identifier: Apache-2.0
"""`opendino config`: list, show, check and compare recipes without starting anything."""

from pathlib import Path
from typing import TYPE_CHECKING

from opendino.cli._words import find_recipe, recipes, split
from opendino.errors import ConfigError

if TYPE_CHECKING:
    from opendino.train.config import PretrainConfig

SUMMARY = "list, show, check and compare recipes"
USAGE = """
usage: opendino config ls                              the shipped recipes
       opendino config show [RECIPE] [key=value ...]   every setting as YAML, defaults included
       opendino config check RECIPE ... [key=value ...]  read the recipes, build their models without memory
       opendino config diff A B                        settings in which two recipes or run folders differ

RECIPE is a file, or the name of a shipped recipe such as vit_tiny_cifar10.
"""


def main(argv: list[str]) -> int:
    """Run one of the four."""
    actions = {"ls": _ls, "show": _show, "check": _check, "diff": _diff}
    if not argv or argv[0] not in actions:
        came = f"'{argv[0]}'" if argv else "nothing"
        raise ConfigError(f"opendino config: takes ls, show, check or diff, and {came} came; see --help")
    return actions[argv[0]](argv[1:])


def _ls(argv: list[str]) -> int:
    split(argv, most=0)
    found = recipes()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name.ljust(width)}  {title(path)}")
    return 0


def _show(argv: list[str]) -> int:
    from opendino.config import to_yaml

    names, overrides = split(argv)
    print(to_yaml(_read(names[0] if names else None, overrides)), end="")
    return 0


def _check(argv: list[str]) -> int:
    from opendino.train.config import check_settings

    names, overrides = split(argv, most=len(argv))
    if not names:
        raise ConfigError("opendino config check: name at least one recipe")
    problems = []
    for name in names:
        try:
            config = _read(name, overrides)
            count = check_settings(config)
        except ConfigError as error:
            problems.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        print(f"{name}: good; student backbone of {count / 1e6:.1f} million parameters")
    if problems:
        raise ConfigError("\n".join(problems))
    return 0


def _diff(argv: list[str]) -> int:
    from opendino.config import difference, leaves

    names, overrides = split(argv, most=2)
    if len(names) != 2 or overrides:
        raise ConfigError("opendino config diff: name two recipes or run folders")
    first, second = (leaves(_read(name, [])) for name in names)
    for key, (a, b) in difference(first, second).items():
        print(f"{key}: {a} | {b}")
    return 0


def _read(name: str | None, overrides: list[str]) -> "PretrainConfig":
    from opendino.config import load
    from opendino.train.config import PretrainConfig

    if name is None:
        return load(PretrainConfig, None, overrides)
    run = Path(name) / "config.yaml"
    return load(PretrainConfig, run if run.is_file() else find_recipe(name), overrides)


def title(recipe: Path) -> str:
    """First comment line of a recipe."""
    first = recipe.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
