# SPDX-License-Identifier: Apache-2.0
"""Files of others, read without ever running what is in them; `hub.py` says what becomes of their content."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from opendino import files
from opendino.errors import CheckpointError, OpendinoError

TORCH_FILES = (".pth", ".pt", ".bin")
INDEX = ".index.json"
_TORCH_BEGINS = (b"PK", b"\x80")
"""A zip archive, or a pickle as torch before 1.6 wrote it."""


def is_weights(path: Path) -> bool:
    """Whether a name is that of a file that `read` takes."""
    return path.suffix in (*TORCH_FILES, ".safetensors") or path.name.endswith(INDEX)


def read(path: Path) -> Mapping[str, Any]:
    """The content of a weights file, on the CPU; of all the parts, where the file is the index of several.

    Raises:
        CheckpointError: the file is damaged, holds Python objects, or something else than names and values.
    """
    if path.name.endswith(INDEX):
        return _read_parts(path)
    try:
        if not path.stat().st_size:
            raise CheckpointError(f"{path}: is empty; download or copy it again")
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_reason(error)}); download or copy it again") from None
    except Exception as error:  # what a broken or hostile file raises has no bounds
        raise CheckpointError(f"{path}: {_why_unread(path, error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; wanted a state dict of names and tensors")
    return content


def _why_unread(path: Path, error: Exception) -> str:
    """Why a file of weights cannot be read, and what to do, as the end of a sentence."""
    begin = _first_bytes(path)
    if path.suffix == ".safetensors":
        return f"is damaged ({_reason(error)}); download or copy it again"
    if not begin.startswith(_TORCH_BEGINS):
        return (
            f"is no file that torch.save wrote: it begins with {begin[:16]!r}; it may be a page or a pointer in place "
            "of the file (`git lfs pull`), so download or copy it again"
        )
    if "weights_only" not in str(error) and "Weights only" not in str(error):
        return f"is damaged or was cut short (it holds {path.stat().st_size} bytes); download or copy it again"
    return (
        "is not a file of tensors alone: it is damaged, or holds Python objects, which are never unpickled here; "
        "download or copy it again, or have its owner save the state dict alone"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file cannot be read, or is something else.
    """
    try:
        content = files.read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); download or copy it again") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON ({error}); mend it, or download or copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; wanted a JSON object")
    return content


@contextlib.contextmanager
def plausible(path: Path) -> Iterator[None]:
    """Around code that takes values out of a file of settings, which may be of any kind there.

    Raises:
        CheckpointError: one is missing, or is not what it should be.
    """
    try:
        yield
    except OpendinoError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else _reason(error)
        raise CheckpointError(
            f"{path}: does not hold what it should ({what}); mend it, or download or copy it again"
        ) from None


def parts_of(index: Path) -> list[str]:
    """Names of the files that an index names.

    Raises:
        CheckpointError: the index cannot be read, or names files outside its folder.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map; download or copy it again")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: names {name!r}, which is not a file beside it; such an index is not read")
    return sorted(set(places.values()))


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _read_parts(index: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name in parts_of(index):
        path = index.with_name(name)
        if not path.is_file():
            raise CheckpointError(f"{index}: {name} is missing beside it; copy the folder as a whole")
        content |= read(path)
    return content
