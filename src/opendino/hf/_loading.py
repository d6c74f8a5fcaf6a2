# SPDX-License-Identifier: Apache-2.0
"""`from_pretrained` that says so when weights do not fit, where transformers warns and goes on; used by `modeling.py`.

Also reads the layout that transformers 5 holds in memory (`q_proj` ...), which its `save_pretrained` writes with
`save_original_format=False` and which only its own classes read.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import cached_file

from opendino.checkpoint.convert import hf as convert
from opendino.errors import ConversionError
from opendino.hf.errors import WeightsError

HEAD = "classifier."
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
IN_MEMORY = ".attention.q_proj."
"""Part of a name that only the layout of transformers 5 in memory has."""
_HEADER = Mapping[str, tuple[int, ...]]


def load_checked(
    cls: Any,  # noqa: ANN401  a PreTrainedModel class
    load: Callable[..., Any],
    name: Any,  # noqa: ANN401  str, path or None
    kwargs: dict[str, Any],
    *,
    strict: bool,
) -> Any:  # noqa: ANN401  the model, or (model, loading info)
    """Run transformers' loader and raise where the weights do not fit the model.

    Args:
        cls: class of the model.
        load: transformers' `from_pretrained` of that class.
        name: repository, folder or None.
        kwargs: the caller's arguments.
        strict: whether missing and left-over weights are errors.

    Raises:
        WeightsError: see `Dinov2PreTrainedModel.from_pretrained`.
    """
    if kwargs.get("weights_only") is False:
        raise WeightsError(f"{name}: weights_only=False would run code from the file; leave it out")
    if name is None or kwargs.get("state_dict") is not None or kwargs.get("gguf_file") is not None:
        return load(name, **kwargs)  # weights from the caller's hands are the caller's to check
    with_info = kwargs.pop("output_loading_info", False)
    _check_config(name, kwargs)
    files = weight_files(name, kwargs)
    pickled = any(path.suffix == ".bin" for path in files)
    header = {} if pickled else read_header(files)
    source, arguments = name, kwargs
    if pickled or any(IN_MEMORY in key for key in header):
        state = hub_names(read_weights(files), str(name))
        header = {key: tuple(value.shape) for key, value in state.items()}
        source, arguments = None, _from_memory(cls, name, state, kwargs)
    try:
        model, info = load(source, output_loading_info=True, **arguments)
    except RuntimeError as error:
        _explain_shapes(cls, name, header, kwargs, error)
        raise
    if with_info:  # who asks what is missing is told, and goes on
        return model, info
    if strict and not getattr(model, "_hf_peft_config_loaded", False) and getattr(model, "hf_quantizer", None) is None:
        check_keys(str(name), info["missing_keys"], info["unexpected_keys"])
    return model


def check_keys(name: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raise for weights that a model lacks or does not know; a classifier may be new or left out.

    Args:
        name: what the message calls the weights.
        missing: parameters of the model without weights, which would stay random.
        unexpected: weights without a parameter, which would be dropped.

    Raises:
        WeightsError: naming them.
    """
    missing = sorted(key for key in missing if not key.startswith(HEAD))
    unexpected = sorted(key for key in unexpected if not key.startswith(HEAD))
    if missing:
        raise WeightsError(
            f"{name}: weights of the model are missing and would be random: {_some(missing)}; "
            f"{f'the file has others, which the model does not know: {_some(unexpected)}; ' if unexpected else ''}"
            "check that config.json and the weights belong together, or pass strict=False"
        )
    if unexpected:
        raise WeightsError(
            f"{name}: weights of the file have no place in the model: {_some(unexpected)}; "
            "check that config.json (depth, registers, use_swiglu_ffn, use_mask_token) belongs to them, "
            "or pass strict=False"
        )


def weight_files(name: Any, kwargs: Mapping[str, Any]) -> list[Path]:  # noqa: ANN401  str or path
    """The weights that a folder or repository holds, one file or several shards: safetensors, else .bin, else none."""
    variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
    wanted = kwargs.get("use_safetensors")
    for stem, suffix, welcome in (("model", "safetensors", wanted is not False), ("pytorch_model", "bin", not wanted)):
        if not welcome or Path(name).is_file():
            continue
        whole = fetch(name, f"{stem}{variant}.{suffix}", kwargs)
        if whole is not None:
            return [whole]
        index = fetch(name, f"{stem}.{suffix}.index{variant}.json", kwargs)
        if index is not None:
            return _shards(name, index, kwargs)
    return []


def _shards(name: Any, index: Path, kwargs: Mapping[str, Any]) -> list[Path]:  # noqa: ANN401  str or path
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: no index of weights; get the file anew") from error
    found = {shard: fetch(name, shard, kwargs) for shard in names}
    lost = [shard for shard, path in found.items() if path is None]
    if lost:
        raise WeightsError(f"{name}: {index.name} names files that are not there: {_some(lost)}; get them")
    return [path for path in found.values() if path is not None]


def read_header(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights in safetensors files, without reading the weights.

    Raises:
        WeightsError: a file is no safetensors file, or is cut off.
    """
    shapes = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise WeightsError(
                f"{path}: not a whole safetensors file ({error}); it holds {path.stat().st_size} bytes; get it anew "
                "(a text of a few lines is a git-lfs pointer: run `git lfs pull`)"
            ) from error
    return shapes


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """All weights of safetensors or .bin files, in memory; .bin files are read as tensors only, and run no code.

    Raises:
        WeightsError: a file holds anything but tensors by name.
    """
    state: dict[str, Tensor] = {}
    for path in files:
        if path.suffix == ".bin":
            state |= _read_pickle(path)
            continue
        with safe_open(path, framework="pt") as file:
            state |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return state


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken or hostile pickle raises has no bounds
        raise WeightsError(
            f"{path}: not a whole file of tensors, or one that would run code ({type(error).__name__}); "
            "it is not opened; take a .safetensors file, from a source that you trust"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds something else than tensors by name; take the weights of a whole model")
    return state


def hub_names(state: Mapping[str, Tensor], where: str = "weights") -> Mapping[str, Tensor]:
    """Weights in the layout that transformers 5 holds in memory -> in the hub layout; other weights as they are.

    Args:
        state: weights by name.
        where: the source, for messages.

    Raises:
        WeightsError: a name that the layout does not have, or a part of a layer is missing.
    """
    if not any(IN_MEMORY in key for key in state):
        return state
    try:
        official = convert.to_official(state, where)
        known = {key: value for key, value in official.state.items() if key not in official.filled}
        hub = convert.from_official(known, where)
    except ConversionError as error:
        raise WeightsError(str(error)) from error
    return {key: value for key, value in hub.state.items() if key not in hub.filled}


def _check_config(name: Any, kwargs: Mapping[str, Any]) -> None:  # noqa: ANN401  str or path
    """Say that a folder has no config; transformers would build the default model."""
    if kwargs.get("config") is not None or not Path(name).is_dir():
        return
    if all(fetch(name, file, kwargs) is None for file in ("config.json", "adapter_config.json")):
        raise WeightsError(
            f"{name}: no config.json in this folder; put the one that belongs to the weights beside them"
        )


def _from_memory(cls: Any, name: Any, state: Mapping[str, Tensor], kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Arguments that load weights from memory; transformers then wants the config ready-made."""
    rest = dict(kwargs)
    types = {key: rest.pop(key) for key in ("dtype", "torch_dtype") if key in rest}
    config = rest.pop("config", None)
    if isinstance(config, PretrainedConfig):
        rest = {key: value for key, value in rest.items() if key not in HUB_ARGUMENTS}
    else:
        config, rest = cls.config_class.from_pretrained(config or name, return_unused_kwargs=True, **rest)
    rest = {key: value for key, value in rest.items() if key not in ("use_safetensors", "variant")}
    return {**rest, **types, "config": config, "state_dict": state}


def _explain_shapes(cls: Any, name: Any, header: _HEADER, kwargs: dict[str, Any], error: RuntimeError) -> None:  # noqa: ANN401
    """Raise an error that names weights of another shape; return where that is not what went wrong."""
    config = kwargs.get("config")
    if not isinstance(config, PretrainedConfig):
        config, _ = cls.config_class.from_pretrained(config or name, return_unused_kwargs=True, **kwargs)
    with torch.device("meta"):
        wanted = {_bare(cls, key): tuple(value.shape) for key, value in cls(config).state_dict().items()}
    other = {
        key: (shape, wanted[_bare(cls, key)])
        for key, shape in header.items()
        if wanted.get(_bare(cls, key), shape) != shape
    }
    if other:
        came, want = next(iter(other.values()))
        raise WeightsError(
            f"{name}: weights have another shape than config.json says: {_some(other)}; the first has {came} in the "
            f"file and {want} in the model; use the config that belongs to them, or draw them anew with "
            "ignore_mismatched_sizes=True"
        ) from error


def _bare(cls: Any, key: str) -> str:  # noqa: ANN401  a PreTrainedModel class
    return key.removeprefix(f"{cls.base_model_prefix}.")


def fetch(name: Any, filename: str, kwargs: Mapping[str, Any]) -> Path | None:  # noqa: ANN401  str or path
    """Path of one file of a folder or repository; None where it is missing or cannot be reached."""
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
    try:
        path = cached_file(str(name), filename, **hub, _raise_exceptions_for_missing_entries=False)
    except OSError:  # transformers' loader asks again, and says what is wrong
        return None
    return None if path is None else Path(path)


def _some(names: Collection[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
