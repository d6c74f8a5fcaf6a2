# SPDX-License-Identifier: Apache-2.0
"""`opendino.load`: a backbone from a run, a weights folder, or a published file.

Read next: `weights.py` (our own folders), `_architecture.py` (how a bare file says what it is).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from opendino.checkpoint._architecture import assemble, infer
from opendino.checkpoint._folders import settle
from opendino.checkpoint.weights import CONFIG, WEIGHTS, load_weights
from opendino.errors import CheckpointError, ConversionError
from opendino.models.input_spec import InputSpec
from opendino.models.presets import PRESETS, PUBLISHED_EVAL_SIZE
from opendino.models.vision_transformer import VisionTransformer, fold_chunks

RUN_WEIGHTS = "weights"
"""Folder inside a run that holds the newest teacher backbone."""

_PUBLISHED_TABLE = 518  # pixels
_PUBLISHED = re.compile(r"dinov2_(vit[sblg]14)(_reg4?)?")
_PUBLISHED_HOME = "https://dl.fbaipublicfiles.com/dinov2"
_TORCH_FILES = (".pth", ".pt", ".bin")


def load(name_or_path: str | Path, **known: Any) -> VisionTransformer:  # noqa: ANN401  arguments of the backbone
    """Open a backbone, in float32, on the CPU and in evaluation mode; `.input_spec` says what images it expects.

    Args:
        name_or_path: one of
            a run folder (its `weights/`, the teacher's newest backbone);
            a weights folder that opendino wrote;
            a published `.pth` file, flat, or a training checkpoint with the key "teacher";
            a `.safetensors` file with official names.
        known: for a bare file, arguments of `VisionTransformer` that its shapes do not tell: `num_heads`, `img_size`.

    Raises:
        CheckpointError: there is no such file, or it cannot be read; the message says what was looked for.
        ConversionError: the weights are not those of a DINOv2 backbone; the message names the keys.
    """
    path = locate(name_or_path)
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return load_weights(path.parent)
    state = backbone_state(str(path), _read(path))
    arguments = infer(str(path), state, known)
    backbone = assemble(str(path), arguments, state)
    if arguments["img_size"] == _PUBLISHED_TABLE:
        backbone.input_spec = InputSpec.default((PUBLISHED_EVAL_SIZE, PUBLISHED_EVAL_SIZE), backbone.in_chans)
    return backbone


def locate(name_or_path: str | Path) -> Path:
    """The weights file that a name or path stands for.

    Raises:
        CheckpointError: there is none; the message says what was looked for.
    """
    path = Path(name_or_path)
    settle(path)
    if path.is_dir():
        return _inside(path)
    if not path.exists():
        raise CheckpointError(_missing(str(name_or_path)))
    if path.suffix not in (*_TORCH_FILES, ".safetensors"):
        raise CheckpointError(f"{path}: is not a weights file; give a folder, or a .pth or .safetensors file")
    return path


def backbone_state(where: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone's tensors of a file's content, under official names, chunks folded.

    Args:
        where: the file, for messages.
        content: a flat state dict; or one with the training checkpoint's key "teacher", in which the backbone's names
            start with `backbone.` and those of the heads, which are left, with `dino_head.` and `ibot_head.`.

    Raises:
        ConversionError: there is no backbone, more than one, or a tensor beside it that is not known.
    """
    inner = content.get("teacher", content)
    state = inner if isinstance(inner, Mapping) else {}
    prefixes = [key.removesuffix("cls_token") for key in state if re.fullmatch(r"(.*\.)?cls_token", key)]
    if len(prefixes) != 1:
        came = "no backbone" if not prefixes else f"{len(prefixes)} backbones ({', '.join(prefixes)})"
        raise ConversionError(
            f"{where}: holds {came}; wanted one with official names such as cls_token and blocks.0.norm1.weight, "
            f"flat or below 'teacher', and these names came: {', '.join(map(str, list(state or content)[:4]))}"
        )
    prefix = prefixes[0]
    around = prefix.removesuffix("backbone.")
    strangers = [key for key in state if not key.startswith((prefix, f"{around}dino_head.", f"{around}ibot_head."))]
    if strangers:
        raise ConversionError(
            f"{where}: holds {strangers[0]} ({len(strangers)} such) beside the backbone '{prefix}'; "
            "wanted a backbone and its heads alone"
        )
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    odd = [key for key, value in own.items() if not isinstance(value, Tensor)]
    if odd:
        raise ConversionError(f"{where}: {odd[0]} is a {type(own[odd[0]]).__name__}, not a tensor")
    return fold_chunks(own)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, SafetensorError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"{path}: cannot be read ({reason[0]}); download or copy it again") from None
    except Exception as error:
        # What torch raises for foreign objects lives in a module that this package never imports.
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise
        raise CheckpointError(
            f"{path}: is not a file of tensors alone: it is damaged, or holds Python objects, which are never "
            "unpickled here; download or copy it again, or have its owner save the state dict alone"
        ) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; wanted a state dict of names and tensors")
    return content


def _inside(folder: Path) -> Path:
    settle(folder / RUN_WEIGHTS)
    for place in (folder / RUN_WEIGHTS, folder):
        if (place / WEIGHTS).is_file():
            return place / WEIGHTS
    if (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder}: this run has not written {RUN_WEIGHTS}/ yet; let it reach its first checkpoint, or continue it"
        )
    if (folder / "state.json").is_file():
        raise CheckpointError(f"{folder}: is a checkpoint inside a run; give the run folder itself")
    raise CheckpointError(
        f"{folder}: holds no weights; looked for {RUN_WEIGHTS}/{WEIGHTS} (of a run) and {WEIGHTS} (of a weights folder)"
    )


def _missing(name: str) -> str:
    published = _PUBLISHED.fullmatch(name)
    if published:
        registers = "_reg4" if published[2] else ""
        file = f"dinov2_{published[1]}{registers}_pretrain.pth"
        return (
            f"{name}: no such file or folder, and published weights are not downloaded yet; "
            f"get {_PUBLISHED_HOME}/dinov2_{published[1]}/{file} and load that file"
        )
    if name in PRESETS:
        return f"{name}: is an architecture without weights; build it by opendino.create('{name}'), or give a path"
    return (
        f"{name}: no such file or folder; give a run folder, a weights folder, or a .pth or .safetensors file "
        "with official names"
    )
