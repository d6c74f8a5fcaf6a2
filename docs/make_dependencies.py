# SPDX-License-Identifier: Apache-2.0
"""What is installed with the package, and under which licence, from the packages' own metadata.

    python docs/make_dependencies.py [FOLDER ...] > docs/reference/dependencies.md

A FOLDER is another `site-packages` to look in, for extras that are not installed beside this Python. A licence that is
none of the permissive ones below ends it.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PERMISSIVE = r"MIT|Apache|BSD|ISC|PSF|Python Software Foundation|0BSD|Zlib|HPND|Unlicense|CC0|CNRI"
WEAK = {
    "certifi": "MPL-2.0: a list of certificates, used as it is",
    "tqdm": "MPL-2.0 AND MIT: used as it is",
    "hypothesis": "MPL-2.0: of the tests, not shipped",
    "pathspec": "MPL-2.0: of the build and the documents, not shipped",
}
"""Licences that bind changes to the package's own files and nothing that uses it."""
NAMED = {
    "opencv-python-headless": "Apache-2.0",
    "matplotlib": "PSF-based (matplotlib licence)",
    "tensorboard-data-server": "Apache-2.0",
}
"""Where the metadata say it in a text or not at all; read from the package's files."""

CUDA = ("nvidia-", "cuda-")
"""What a CUDA build of torch brings along; the CPU build needs none of it."""


def main(folders: list[str]) -> str:
    """The page."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {_plain(one.name): one for one in distributions(path=[*folders, *sys.path])}
    parts = {"the package itself": project["dependencies"], **project["optional-dependencies"]}
    lines = [HEAD]
    for part, wanted in parts.items():
        title = part if part.startswith("the") else f"`opendino[{part}]`"
        lines += [f"\n## {title}\n", "| package | wanted | looked at | licence |", "|---|---|---|---|"]
        for one in sorted(wanted, key=str.lower):
            name = re.match(r"[\w-]+", one)[0]
            distribution = found.get(_plain(name))
            seen = f"{distribution.version} | {licence(distribution)}" if distribution else "- | not installed here"
            lines.append(f"| {name} | `{one[len(name) :]}` | {seen} |")
    direct = {_plain(re.match(r"[\w-]+", one)[0]) for wanted in parts.values() for one in wanted}
    behind = sorted(closure(project["dependencies"], found) - direct)
    lines += [
        "\n## What the package's own dependencies bring along\n",
        "| package | looked at | licence |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {found[name].version} | {licence(found[name])} |" for name in behind]
    return "\n".join(lines) + "\n"


HEAD = """# Dependencies and their licences

Written by `python docs/make_dependencies.py`, from what the packages say of themselves; `tests/unit/test_docs.py` holds
the names to `pyproject.toml`. Nothing copyleft is among them; where a licence binds changes to a package's own files
(MPL), it says so. The wheels of numpy, scipy and opencv-python-headless hold compiled libraries beside their own code
(libgfortran under the GPL with GCC's exception; in OpenCV's FFmpeg, LGPL-2.1), whose terms matter to who passes those
wheels on. CUDA builds of torch bring NVIDIA's libraries under NVIDIA's own terms. No code of theirs is in this
repository. Data shipped: the garments of Fashion-MNIST (MIT), with the licence beside them."""


def licence(distribution: Distribution) -> str:
    """The licence that the metadata name, in a few words.

    Raises:
        SystemExit: it is none that we take.
    """
    name, metadata = _plain(distribution.name), distribution.metadata
    if name in WEAK or name in NAMED:
        return WEAK.get(name) or NAMED[name]
    if name.startswith(CUDA):
        return "NVIDIA's own: with CUDA builds of torch alone, used as it is"
    classifiers = [
        one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier") or () if one.startswith("License ::")
    ]
    stated = metadata.get("License-Expression") or ", ".join(one for one in classifiers if one != "OSI Approved")
    stated = stated or (metadata.get("License") or "").strip().partition("\n")[0]
    if not re.search(PERMISSIVE, stated) or re.search(r"GPL", stated):
        raise SystemExit(f"{distribution.name}: licence '{stated}' is not among the permissive ones")
    return stated.replace("|", "/")


def closure(wanted: Iterable[str], found: dict[str, Distribution]) -> set[str]:
    """Names of all installed packages that these requirements need, extras left out."""
    names: set[str] = set()
    rest = [_plain(re.match(r"[\w.-]+", one)[0]) for one in wanted]
    while rest:
        name = rest.pop()
        if name in names or name not in found:
            continue
        names.add(name)
        rest += [_plain(re.match(r"[\w.-]+", one)[0]) for one in found[name].requires or () if "extra ==" not in one]
    return names


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]))
