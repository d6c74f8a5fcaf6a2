# SPDX-License-Identifier: Apache-2.0
"""The grammar of every verb: names first, then `key=value`; and where recipes are found."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from opendino.errors import ConfigError


def split(argv: Sequence[str], most: int = 1) -> tuple[list[str], list[str]]:
    """Positional words and `key=value` words of a command line.

    Args:
        argv: words after the verb.
        most: positional words that the verb takes.

    Raises:
        ConfigError: there is an option or a positional word too many.
    """
    for word in argv:
        if word.startswith("-"):
            plain = f" ({word.lstrip('-')})" if "=" in word else ""
            raise ConfigError(
                f"{word}: no such option; settings are written key=value, without dashes{plain}; see --help"
            )
    names = [word for word in argv if "=" not in word]
    if len(names) > most:
        wanted = "none" if most == 0 else f"at most {most}"
        raise ConfigError(f"'{names[most]}': {wanted} of such words is taken here; settings are written key=value")
    return names, [word for word in argv if "=" in word]


def as_settings(argv: Sequence[str], *options: str) -> list[str]:
    """A command line with `--out DIR` and `--out=DIR` as `out=DIR`, for the options that a verb writes that way.

    Raises:
        ConfigError: an option is the last word.
    """
    words, rest = [], iter(argv)
    for word in rest:
        name = word.removeprefix("--").partition("=")[0]
        if not word.startswith("--") or name not in options:
            words.append(word)
        elif "=" in word:
            words.append(word.removeprefix("--"))
        else:
            value = next(rest, None)
            if value is None:
                raise ConfigError(f"{word}: what comes behind it is missing; see --help")
            words.append(f"{name}={value}")
    return words


def recipes() -> dict[str, Path]:
    """Name to path of every shipped recipe, such as `pretrain/vit_tiny_cifar10`."""
    home = recipe_home()
    if home is None:
        return {}
    return {str(path.relative_to(home).with_suffix("")): path for path in sorted(home.rglob("*.yaml"))}


def recipe_home() -> Path | None:
    """Folder of the shipped recipes: inside an installed package, beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    places = (package / "configs", package.parents[1] / "configs")
    return next((place for place in places if place.is_dir()), None)


def find_recipe(word: str) -> Path:
    """Path of a recipe named by its file or, for a shipped one, by its name with or without the folder.

    Raises:
        ConfigError: there is no such file or name, or it is a folder or a file of images.
    """
    path = Path(word)
    if path.is_dir() or (path.is_file() and _is_binary(path)):
        raise ConfigError(
            f"{word}: is no recipe (a YAML file); images are named by a setting, such as data={word}, see --help"
        )
    if path.is_file():
        return path
    shipped = recipes()
    stem = word.removeprefix("configs/").removesuffix(".yaml")
    for name, place in shipped.items():
        if stem in (name, name.rpartition("/")[2]):
            return place
    ends = {name.rpartition("/")[2]: name for name in shipped}
    close = difflib.get_close_matches(stem.rpartition("/")[2], ends, n=1)
    hint = f"did you mean {ends[close[0]]}?" if close else "`opendino config ls` lists the shipped ones"
    raise ConfigError(f"{word}: no such recipe; {hint}")


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(1024)


def find_training(word: str, command: str) -> Path:
    """As `find_own`, for a training.

    Raises:
        ConfigError: also where it is a configuration of other code.
    """
    from opendino.cli._foreign import refuse_foreign

    refuse_foreign(find_recipe(word))
    return find_own(word, command)


def find_own(word: str, command: str) -> Path:
    """As `find_recipe`, for one command, such as "curate" or "eval knn".

    Raises:
        ConfigError: also where it is a recipe of another command.
    """
    from opendino.cli._foreign import refuse_other

    recipe = find_recipe(word)
    refuse_other(recipe, command)
    return recipe
