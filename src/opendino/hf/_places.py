# SPDX-License-Identifier: Apache-2.0
"""Folders and repositories of the Hugging Face face: what is there, what is not, and whether the hub answers.

transformers asks the hub for one file after another, and huggingface_hub tries each of them six times: without a
network that takes minutes. `reached` asks once. Read next: `auto.py` and `_loading.py`, which use it.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import cached_file

from opendino.checkpoint._fetch import first_line, forbidden, not_at_hand
from opendino.checkpoint._reading import is_weights, read_json
from opendino.checkpoint.catalog import CATALOG, nearest
from opendino.checkpoint.convert._hf_config import CONFIG
from opendino.errors import CheckpointError, OpendinoError
from opendino.hf.errors import BrokenFileError, MissingFilesError

ADAPTER = "adapter_config.json"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_REPOSITORY = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_SERVER_ERROR = 500
_answer: ContextVar[str | None] = ContextVar("answer", default=None)
"""Inside `reached`: why the hub is not asked again, empty where it answers; None outside."""


@contextlib.contextmanager
def reached(name: Any, file: str, kwargs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:  # noqa: ANN401  str or path
    """Ask once whether a model can be had, before all of its files are asked for; say in our words what is missing.

    Args:
        name: repository, folder or None.
        file: the file without which there is nothing: `config.json` or `preprocessor_config.json`.
        kwargs: the caller's arguments.

    Yields:
        The arguments to go on with: those of the caller, and `local_files_only=True` where the hub does not answer.

    Raises:
        MissingFilesError: there is no such folder, a file is missing in it, or the repository is not in the cache and
            cannot be downloaded; in place of transformers' OSError.
        BrokenFileError: the file is no JSON object.
    """
    repository = _repository(name, kwargs)
    if name is not None and Path(name).is_dir():
        _check_folder(Path(name), file, kwargs)
    reason = "" if repository is None else _reason(repository, file, kwargs)
    arguments = {**kwargs, "local_files_only": True} if reason else dict(kwargs)
    if reason and file == CONFIG and _configless(kwargs) and not _cached(name, repository, arguments):
        raise MissingFilesError(_explain(name, repository, file, kwargs, reason))
    token = _answer.set(reason if repository is not None else _answer.get())
    try:
        yield arguments
    except OpendinoError:
        raise
    except OSError as error:
        said = _explain(name, repository, file, kwargs, reason or first_line(error))
        if said is None:
            raise
        raise MissingFilesError(said) from error
    finally:
        _answer.reset(token)


def fetch(name: Any, filename: str, kwargs: Mapping[str, Any]) -> Path | None:  # noqa: ANN401  str or path
    """Path of one file of a folder or repository; None where it is missing or cannot be reached."""
    try:
        path = cached_file(str(name), filename, **hub_arguments(kwargs), _raise_exceptions_for_missing_entries=False)
    except OSError:  # transformers' loader asks again, and says what is wrong
        return None
    return None if path is None else Path(path)


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a caller's arguments those that say where files are."""
    return {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BrokenFileError: the file is something else.
    """
    try:
        return read_json(path)
    except CheckpointError as error:
        raise BrokenFileError(str(error)) from None


def base_of(name: Any, kwargs: Mapping[str, Any]) -> str | None:  # noqa: ANN401  str or path
    """The model that a PEFT adapter belongs to; None for what is no adapter, or holds a model of its own."""
    if fetch(name, CONFIG, kwargs) is not None:
        return None
    path = fetch(name, ADAPTER, kwargs)
    base = None if path is None else read_object(path).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _repository(name: Any, kwargs: Mapping[str, Any]) -> str | None:  # noqa: ANN401  str or path
    """The repository that is meant by a name, or by the adapter that it names; None for what is here."""
    adapter = name is not None and Path(name).is_dir()
    wanted = base_of(name, kwargs) if adapter else name
    if wanted is None or Path(wanted).exists():
        return None
    if _REPOSITORY.fullmatch(str(wanted)) is None or is_weights(Path(wanted)):
        raise MissingFilesError(
            f"{name}: its base model {wanted} is not there; write its place into {ADAPTER}"
            if adapter
            else f"{name}: no such file or folder; give a folder, or a repository such as facebook/dinov2-base"
        )
    return str(wanted)


def _check_folder(folder: Path, file: str, kwargs: Mapping[str, Any]) -> None:
    """Say of a folder what transformers would guess at, or fall over."""
    place = folder / (kwargs.get("subfolder") or "")
    if (place / file).is_file():
        read_object(place / file)
    elif file == CONFIG and _configless(kwargs) and not (place / ADAPTER).is_file():
        raise MissingFilesError(_lacking(place, file))


def _cached(name: Any, repository: str | None, kwargs: Mapping[str, Any]) -> bool:  # noqa: ANN401  str or path
    """Whether a config is in the cache, or that of an adapter; transformers would ask the hub for the latter anew."""
    return fetch(repository, CONFIG, kwargs) is not None or base_of(name, kwargs) is not None


def _configless(kwargs: Mapping[str, Any]) -> bool:
    """Whether the caller gave no config, so that there must be a file of it."""
    return kwargs.get("config") is None and kwargs.get("gguf_file") is None


def _lacking(place: Path, file: str) -> str:
    return f"{place}: holds no {file}; put the one that belongs to the model there"


def _reason(repository: str, file: str, kwargs: Mapping[str, Any]) -> str:
    """Why the hub is not to be asked for more; empty where it answers, were it by an error."""
    known = _answer.get()
    if known is not None:
        return known
    if kwargs.get("local_files_only"):
        return "local_files_only=True"
    no = forbidden() or _silence(repository, file, kwargs)
    if no and kwargs.get("force_download"):
        raise MissingFilesError(not_at_hand(repository, file, constants.HF_HUB_CACHE, no))
    return no or ""


def _silence(repository: str, file: str, kwargs: Mapping[str, Any]) -> str | None:
    if kwargs.get("proxies"):  # only the loader knows how to use them
        return None
    try:
        url = hf_hub_url(repository, file, revision=kwargs.get("revision"))
        get_hf_file_metadata(url, token=kwargs.get("token"))
    except HfHubHTTPError as error:  # there is no such file, or not for us; or the hub is ill
        ill = getattr(error.response, "status_code", 0) >= _SERVER_ERROR
        return f"{constants.ENDPOINT} answers {first_line(error)}" if ill else None
    except ValueError:  # no name of a repository: transformers says so
        return None
    except Exception as error:  # huggingface_hub changed its network library, and with it the errors
        return f"{constants.ENDPOINT} does not answer, {type(error).__name__}"
    return None


def _explain(name: Any, repository: str | None, file: str, kwargs: Mapping[str, Any], reason: str) -> str | None:  # noqa: ANN401
    """What is said in place of an OSError of transformers; None where there is nothing to add."""
    if repository is None:
        place = Path(name or "") / (kwargs.get("subfolder") or "")
        return _lacking(place, file) if name is not None and place.is_dir() and not (place / file).exists() else None
    if repository not in CATALOG and (near := nearest(repository)):
        return f"{repository}: no such folder, and as a repository it cannot be had ({reason}); did you mean {near}?"
    if "/" not in repository:
        return (
            f"{repository}: no such folder here, and as a repository it cannot be had ({reason}); give a folder, or a "
            "repository such as facebook/dinov2-base"
        )
    cache = kwargs.get("cache_dir") or constants.HF_HUB_CACHE
    return not_at_hand(repository, file, cache, reason)
