# SPDX-License-Identifier: Apache-2.0
"""Published files on this machine: from the caches of torch.hub and huggingface_hub, or through them from the network.

`HF_HUB_OFFLINE=1` forbids the network for both. A file in a cache is used as it is, without asking for a newer one.
"""

import logging
import os
import re
import sys
from pathlib import Path

import torch

from opendino.checkpoint._folders import sha256
from opendino.checkpoint._reading import INDEX, parts_of
from opendino.checkpoint.catalog import Entry
from opendino.checkpoint.convert._hf_config import CONFIG, PREPROCESSOR
from opendino.errors import CheckpointError

_WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin")
NAMES = 2**20
"""Bytes that names, shapes and padding of a weights file stay below; those of ViT-g take 0.2 million."""
_SHA256 = re.compile("[0-9a-f]{64}")
_log = logging.getLogger(__name__)


def official_file(entry: Entry, file: str) -> Path:
    """A file of the official repository, in `torch.hub`'s folder of checkpoints.

    Raises:
        CheckpointError: it is not there and cannot be downloaded, or was cut short.
    """
    home = Path(torch.hub.get_dir()) / "checkpoints"
    path, url = home / file, entry.url(file)
    if not path.is_file():
        reason = forbidden()
        if reason is None:
            try:
                home.mkdir(parents=True, exist_ok=True)
                _log.info("downloading %s to %s", url, path)
                torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
            except (OSError, RuntimeError) as error:
                reason = first_line(error)
        if reason is not None:
            raise CheckpointError(
                f"{entry.name}: {file} is not in {home} and cannot be downloaded ({reason}); "
                f"get {url} and put it there, or give the file's path"
            )
    if file == entry.file:
        check_file(path, entry)
    return path


def hub_folder(repository: str) -> Path:
    """Folder of the Hugging Face cache that holds a repository's weights, `config.json`, and what else is there.

    Args:
        repository: owner/name.

    Raises:
        CheckpointError: a file is not there and cannot be downloaded, or the repository holds no weights.
    """
    _hub_file(repository, CONFIG)
    cached = (_cached(repository, name) for name in _WEIGHTS)
    path = next((path for path in cached if isinstance(path, Path)), None)
    if path is None:
        path = next((path for name in _WEIGHTS if (path := _hub_file(repository, name))), None)
    if path is None:
        raise CheckpointError(
            f"{repository}: the repository holds none of {', '.join(_WEIGHTS)}; give one with weights"
        )
    for part in parts_of(path) if path.name.endswith(INDEX) else ():
        _hub_file(repository, part)
    try:  # last: where the hub does not answer, one of the others has said so, and each asking takes half a minute
        _hub_file(repository, PREPROCESSOR)
    except CheckpointError:  # the model works without it
        _log.warning("%s: %s is out of reach; images get the published mean and std", repository, PREPROCESSOR)
    return path.parent


def is_cached(repository: str) -> bool:
    """Whether the Hugging Face cache holds a model of that name."""
    return isinstance(_cached(repository, CONFIG), Path)


def check_file(path: Path, entry: Entry) -> None:
    """Compare a file's size with what its numbers take, and its hash with the published one, where there is one.

    The catalogue has the hashes of the official backbones. The hub publishes those of its large files, and
    huggingface_hub gives them as names to the files of its cache, which the folders with readable names link to.

    Raises:
        CheckpointError: it is smaller or larger, or another file.
    """
    size = path.stat().st_size
    if size > entry.tensor_bytes + NAMES:
        raise CheckpointError(
            f"{path}: has {size} bytes, and {entry.name} takes {entry.tensor_bytes} and some names; "
            "it is another file: remove it, and download or copy the right one"
        )
    if size < entry.tensor_bytes:
        raise CheckpointError(
            f"{path}: has {size} bytes, and {entry.name} takes {entry.tensor_bytes} or more; "
            "it was cut short: remove it, and download or copy it again"
        )
    published = entry.sha256 or _name_in_cache(path)
    if published is not None and sha256(path) != published:
        raise CheckpointError(
            f"{path}: its SHA-256 is not {published}, that of {entry.name}; remove {path.resolve()}, and download or "
            "copy it again"
        )


def _name_in_cache(path: Path) -> str | None:
    """The SHA-256 by which huggingface_hub's cache knows a file; None outside a cache, and for small files."""
    file = path.resolve()
    return file.name if file.parent.name == "blobs" and _SHA256.fullmatch(file.name) else None


def _hub_file(repository: str, file: str) -> Path | None:
    """A file of a repository; None where the repository does not hold it."""
    import huggingface_hub as hub  # a third of a second that local files need not pay
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path = _cached(repository, file)
    if path is not None:
        return path if isinstance(path, Path) else None
    reason = forbidden()
    if reason is None:
        try:
            return Path(hub.hf_hub_download(repository, file))
        except (OSError, EntryNotFoundError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return None
            reason = first_line(error)
    raise CheckpointError(not_at_hand(repository, file, constants.HF_HUB_CACHE, reason))


def not_at_hand(repository: str, file: str, cache: str | Path, reason: str) -> str:
    """What is said where a file of a repository is not in the cache and the hub cannot be reached."""
    folder = f"models--{repository.replace('/', '--')}"
    return (
        f"{repository}: {file} is not in {cache} and cannot be downloaded ({reason}); "
        f"run `hf download {repository}` where there is a network and copy the folder {folder} there, or put "
        f"https://huggingface.co/{repository}/resolve/main/{file} and its neighbours into a folder and give its path"
    )


def _cached(repository: str, file: str) -> Path | bool | None:
    """Where a file is; False where the repository is known to lack it; None where nothing is known."""
    import huggingface_hub as hub

    try:
        found = hub.try_to_load_from_cache(repository, file)
    except ValueError as error:
        raise CheckpointError(f"{repository}: is not a name of a repository ({first_line(error)})") from None
    return Path(found) if isinstance(found, str) else None if found is None else False


def forbidden() -> str | None:
    """Why the network is not to be asked; None where it may be."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    return None


def first_line(error: Exception) -> str:
    """What an error says, as part of a sentence."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
