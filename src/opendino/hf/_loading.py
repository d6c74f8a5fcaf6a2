# SPDX-License-Identifier: Apache-2.0
"""`from_pretrained` that says so when weights do not fit, where transformers warns and goes on; used by `modeling.py`.

Also reads the layout that transformers 5 holds in memory (`q_proj` ...), which its `save_pretrained` writes with
`save_original_format=False` and which only its own classes read.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig

from opendino.checkpoint._reading import parts_of
from opendino.checkpoint._tensors import check_finite, check_ranks, is_weight
from opendino.checkpoint.convert import hf as convert
from opendino.checkpoint.convert._table import some
from opendino.errors import CheckpointError, ConversionError
from opendino.hf._places import ADAPTER, HUB_ARGUMENTS, base_of, fetch
from opendino.hf.errors import MissingFilesError, WeightsError

HEAD = "classifier."
HEADS = {"classifier.weight", "classifier.bias"}
"""A classifier as the published files have it."""
IN_MEMORY = ".attention.q_proj."
"""Part of a name that only the layout of transformers 5 in memory has."""
_FLOATS = ("F", "BF")
"""Beginnings of the types of a safetensors header that are weights: F64 to F4, BF16."""
_HEADER = Mapping[str, tuple[int, ...]]
_log = logging.getLogger(__name__)


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
    state = kwargs.get("state_dict")
    if kwargs.get("gguf_file") is not None or (name is None and not state) or (state is not None and not state):
        return load(name, **kwargs)  # no weights: whoever says so wants new ones
    with_info = kwargs.pop("output_loading_info", False)
    if state is not None:
        try:
            check_kinds(str(name or "state_dict"), state)
            model, info = load(name, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            _explain_shapes(cls, name, _shapes(state), kwargs, error)
            raise
        return (model, info) if with_info else _checked(str(name or "state_dict"), model, info, strict)
    files = weight_files(name, kwargs)
    pickled = any(path.suffix == ".bin" for path in files)
    header = {} if pickled else read_header(files, quantised=with_info or _is_quantised(name, kwargs))
    source, arguments = name, kwargs
    if pickled or any(IN_MEMORY in key for key in header):
        state = hub_names(read_weights(files), str(name))
        header = _shapes(state)
        source, arguments = None, _from_memory(cls, name, state, kwargs)
    try:
        model, info = load(source, output_loading_info=True, **arguments)
    except RuntimeError as error:
        _explain_shapes(cls, name, header, kwargs, error)
        raise
    except OSError as error:
        if files or not Path(name).is_dir() or fetch(name, ADAPTER, kwargs) is not None:
            raise
        raise MissingFilesError(f"{name}: holds no weights; looked for {', '.join(_wanted(kwargs))}") from error
    if with_info:  # who asks what is missing is told, and goes on
        return model, info
    return _checked(str(name), model, info, strict)


def _checked(name: str, model: Any, info: Mapping[str, Any], strict: bool) -> Any:  # noqa: ANN401  a PreTrainedModel
    """The model, if its weights are whole; those of an adapter or in a quantised form are their libraries' to check."""
    if (
        not strict
        or getattr(model, "_hf_peft_config_loaded", False)
        or getattr(model, "hf_quantizer", None) is not None
    ):
        return model
    head = [key for key, _ in model.named_parameters() if key.startswith(HEAD)]
    promised = any(
        kind.endswith("ForImageClassification") for kind in getattr(model.config, "architectures", None) or ()
    )
    check_keys(name, info["missing_keys"], info["unexpected_keys"], head, promised=promised)
    try:
        check_finite(name, dict(model.named_parameters()))
    except ConversionError as error:
        raise WeightsError(str(error)) from None
    return model


def check_keys(
    name: str,
    missing: Collection[str],
    unexpected: Collection[str],
    head: Collection[str] = (),
    *,
    promised: bool = False,
) -> None:
    """Raise for weights that a model lacks or does not know.

    A whole classifier may be new, which is warned of, on weights that promise none, and left out by a model that has
    none.

    Args:
        name: what the message calls the weights.
        missing: parameters of the model without weights, which would stay random.
        unexpected: weights without a parameter, which would be dropped.
        head: parameters of the model's classifier.
        promised: whether `architectures` of config.json says that the weights hold a classifier.

    Raises:
        WeightsError: naming them.
    """
    new_head = bool(head) and set(head) <= set(missing)
    left_out = not head and set(unexpected) >= HEADS
    if new_head and promised:
        raise WeightsError(
            f"{name}: the classifier is missing and would be random: {some(sorted(head))}; config.json says that the "
            "weights hold one: get the whole weights, write the backbone's class into architectures for a new "
            "classifier, or pass strict=False"
        )
    if new_head:
        _log.warning(
            "%s: holds a backbone alone; the classifier (%s) is new and random: train it before it is used",
            name,
            some(sorted(head)),
        )
    missing = sorted(set(missing) - (set(head) if new_head else set()))
    unexpected = sorted(set(unexpected) - (HEADS if left_out else set()))
    if missing:
        raise WeightsError(
            f"{name}: weights of the model are missing and would be random: {some(missing, 3)}; "
            f"{f'the file has others, which the model does not know: {some(unexpected, 3)}; ' if unexpected else ''}"
            "check that config.json and the weights belong together, or pass strict=False"
        )
    if unexpected:
        raise WeightsError(
            f"{name}: weights of the file have no place in the model: {some(unexpected, 3)}; "
            "check that config.json (depth, registers, use_swiglu_ffn, use_mask_token) belongs to them, "
            "or pass strict=False"
        )


def adapter_classes(name: Any, kwargs: Mapping[str, Any]) -> int | None:  # noqa: ANN401  str or path
    """How many classes the classifier in a PEFT adapter has; None where there is no adapter, or none in it.

    Raises:
        WeightsError: the adapter's weights are broken.
    """
    if base_of(name, kwargs) is None:
        return None
    for file in ("adapter_model.safetensors", "adapter_model.bin"):
        path = fetch(name, file, kwargs)
        if path is not None:
            shapes = read_header([path]) if path.suffix == ".safetensors" else _shapes(read_weights([path]))
            heads = [shape for key, shape in shapes.items() if key.endswith(f".{HEAD}weight")]
            return heads[0][0] if heads else None
    return None


def weight_files(name: Any, kwargs: Mapping[str, Any]) -> list[Path]:  # noqa: ANN401  str or path
    """The weights that a folder or repository holds, one file or several shards: safetensors, else .bin, else none."""
    if Path(name).is_file():
        return []
    for file in _wanted(kwargs):
        path = fetch(name, file, kwargs)
        if path is not None:
            return _shards(name, path, kwargs) if file.endswith(".json") else [path]
    return []


def _wanted(kwargs: Mapping[str, Any]) -> list[str]:
    """Names of weights files, the first choice first."""
    variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
    safe = kwargs.get("use_safetensors")
    kinds = [("model", "safetensors")] * (safe is not False) + [("pytorch_model", "bin")] * (not safe)
    return [
        file for stem, suffix in kinds for file in (f"{stem}{variant}.{suffix}", f"{stem}.{suffix}.index{variant}.json")
    ]


def _shards(name: Any, index: Path, kwargs: Mapping[str, Any]) -> list[Path]:  # noqa: ANN401  str or path
    try:
        names = parts_of(index)
    except CheckpointError as error:
        raise WeightsError(str(error)) from None
    found = {shard: fetch(name, shard, kwargs) for shard in names}
    lost = [shard for shard, path in found.items() if path is None]
    if lost:
        raise WeightsError(f"{name}: {index.name} names files that are not there: {some(lost, 3)}; get them")
    return [path for path in found.values() if path is not None]


def read_header(files: Collection[Path], *, quantised: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights in safetensors files, without reading the weights.

    Raises:
        WeightsError: a file is no safetensors file, is cut off, or holds something that is no weight.
    """
    shapes, odd = {}, {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                odd |= {key: kind for key, part in parts.items() if not (kind := part.get_dtype()).startswith(_FLOATS)}
                shapes |= {key: tuple(part.get_shape()) for key, part in parts.items()}
        except SafetensorError as error:
            raise WeightsError(
                f"{path}: not a whole safetensors file ({error}); it holds {path.stat().st_size} bytes; get it anew "
                "(a text of a few lines is a git-lfs pointer: run `git lfs pull`)"
            ) from error
    if not quantised:
        _refuse_kinds(", ".join(str(path) for path in files), odd)
    return shapes


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def check_kinds(name: str, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no weights: whole, Boolean and complex numbers.

    Raises:
        WeightsError: naming them.
    """
    _refuse_kinds(name, {key: str(value.dtype) for key, value in state.items() if not is_weight(value)})


def _refuse_kinds(name: str, odd: Mapping[str, str]) -> None:
    if odd:
        raise WeightsError(
            f"{name}: weights are floating-point numbers, and these are not: "
            f"{some([f'{key} ({kind})' for key, kind in odd.items()], 3)}; quantised weights have to be "
            "turned back by the library that wrote them"
        )


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
    check_kinds(str(path), state)
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
        check_ranks(where, state)
        official = convert.to_official(state, where)
        known = {key: value for key, value in official.state.items() if key not in official.filled}
        hub = convert.from_official(known, where)
    except ConversionError as error:
        raise WeightsError(str(error)) from error
    return {key: value for key, value in hub.state.items() if key not in hub.filled}


def _is_quantised(name: Any, kwargs: Mapping[str, Any]) -> bool:  # noqa: ANN401  str or path
    """Whether the config speaks of another library's quantisation, which reads its own kinds of numbers."""
    path = fetch(name, "config.json", kwargs)
    return path is not None and "quantization_config" in path.read_text(encoding="utf-8", errors="replace")


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
            f"{name}: weights have another shape than config.json says: {some(other, 3)}; the first has {came} in the "
            f"file and {want} in the model; use the config that belongs to them, or draw them anew with "
            "ignore_mismatched_sizes=True"
        ) from error


def _bare(cls: Any, key: str) -> str:  # noqa: ANN401  a PreTrainedModel class
    return key.removeprefix(f"{cls.base_model_prefix}.")
