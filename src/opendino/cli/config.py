# SPDX-License-Identifier: Apache-2.0
"""`opendino config`: list, show, check and compare recipes without starting anything."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from opendino.cli._foreign import command_of, commands, refuse_foreign
from opendino.cli._words import find_recipe, recipes, split
from opendino.errors import ConfigError

if TYPE_CHECKING:
    from opendino.train.config import PretrainConfig

REFERENCE = "docs/reference/configuration.md"
"""Where `explain` is kept, in a checkout."""

SUMMARY = "list, show, check and compare recipes"
USAGE = """
usage: opendino config ls                              the shipped recipes
       opendino config show [RECIPE] [key=value ...]   every setting as YAML, defaults included
       opendino config check RECIPE ... [key=value ...]  read the recipes, build their models without memory
       opendino config diff A B                        settings in which two recipes or run folders differ
       opendino config import OFFICIAL.yaml gpus=N [out=RECIPE.yaml]
                                                       a training configuration of the official code as a recipe;
                                                       N GPUs it was meant for, as it says images for each
       opendino config explain                         every setting of every command, with default and meaning

RECIPE is a file, or the name of a shipped recipe such as vit_tiny_cifar10.
"""


def main(argv: list[str]) -> int:
    """Run one of the six."""
    actions = {"ls": _ls, "show": _show, "check": _check, "diff": _diff, "import": _import, "explain": _explain}
    if not argv or argv[0] not in actions:
        came = f"'{argv[0]}'" if argv else "nothing"
        raise ConfigError(f"opendino config: takes ls, show, check, diff, import or explain, not {came}; see --help")
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
            said = "good"
            if hasattr(config, "student"):
                said += f"; student backbone of {check_settings(config) / 1e6:.1f} million parameters"
        except ConfigError as error:
            problems.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        print(f"{name}: {said}")
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


def _import(argv: list[str]) -> int:
    from opendino.config import load
    from opendino.files import write_whole
    from opendino.train.official_config import import_official

    names, words = split(argv)
    settings = load(_ImportConfig, None, words)
    if not names or not settings.gpus:
        raise ConfigError("opendino config import: give an official training YAML, and gpus=N that it was meant for")
    imported = import_official(Path(names[0]), settings.gpus)
    text = imported.text(f"From {Path(names[0]).name} of the official code, for {settings.gpus} GPUs.")
    if settings.out:
        write_whole(Path(settings.out), text, error=ConfigError)
        print(f"{settings.out}: a recipe; next: opendino config check {settings.out}")
        for key, why in imported.passed_over.items():
            print(f"  passed over: {key}: {why}")
    else:
        print(text, end="")
    return 0


def configs() -> dict[str, type]:
    """Command to the class of its settings."""
    return {command: getattr(import_module(module), name) for command, (module, name) in commands().items()}


def _explain(argv: list[str]) -> int:
    from opendino.cli._reference import page

    split(argv, most=0)
    print(page(configs()), end="")
    return 0


@dataclass(frozen=True)
class _ImportConfig:
    """What an import takes besides the file.

    Attributes:
        gpus: that it was meant for.
        out: file of the recipe; printed when empty.
    """

    gpus: int = 0
    out: str = ""


def _read(name: str | None, overrides: list[str]) -> "PretrainConfig":
    from opendino.config import load
    from opendino.train.config import PretrainConfig

    if name is None:
        return load(PretrainConfig, None, overrides)
    run = Path(name) / "config.yaml"
    path = run if run.is_file() else find_recipe(name)
    refuse_foreign(path)
    return load(_kind_of(path), path, overrides)


def _kind_of(recipe: Path) -> "type[PretrainConfig]":
    """Settings of the command that a recipe is for; those of a pretraining where no command has all of its groups."""
    module, name = commands()[command_of(recipe) or "pretrain"]
    return getattr(import_module(module), name)


def title(recipe: Path) -> str:
    """First comment line of a recipe."""
    first = recipe.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
