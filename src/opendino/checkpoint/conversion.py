# SPDX-License-Identifier: Apache-2.0
"""A model in another format, proved by reading it back; the formats are in `convert/`, reading is `hub.py`.

What is written is opened again and has to give the source's features on a fixed image; only then it gets its name.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from opendino.axes import Images
from opendino.checkpoint._architecture import HEAD_WIDTH, arguments_of
from opendino.checkpoint._folders import whole
from opendino.checkpoint.convert import FORMATS, _hf_config, _timm_config
from opendino.checkpoint.convert._table import Converted, some
from opendino.checkpoint.hub import Model, Opened, open_model
from opendino.checkpoint.weights import WEIGHTS, save_weights
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.files import check_place, save_tensors, to_disk
from opendino.models.classifier import LinearClassifier
from opendino.models.positions import set_positions
from opendino.models.vision_transformer import VisionTransformer

_FILES = (".pth", ".pt", ".bin", ".safetensors")
_USUAL = {"value_range": None, "orient": True}  # how images are decoded where nothing else is said
_OTHER_FILES = (".ckpt", ".npz", ".onnx", ".gguf", ".h5", ".json")


@dataclass(frozen=True)
class ConvertConfig:
    """How a model is converted.

    Attributes:
        to: "official" (`.pth`, `.safetensors`, or a folder of opendino's), "hf" (a folder that transformers opens) or
            "timm" (a folder for timm's "local-dir:", or a file).
        tolerance: largest difference of features that is accepted.
        num_heads: attention heads, for a bare file whose width is not a multiple of 64.
        img_size: (H, W) of the position table in pixels, for a bare file where it is not square.
        layers: blocks that the classifier of an official `_lc` name reads.
    """

    to: str = "hf"
    tolerance: float = 1e-5
    num_heads: int | None = None
    img_size: tuple[int, int] | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ConfigError(f"to={self.to!r} is not known; choose one of {', '.join(FORMATS)}")
        if not self.tolerance >= 0:
            raise ConfigError(f"tolerance={self.tolerance} cannot be met; use 0 or more")


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source: what was read.
        source_format: "opendino", or a name of `FORMATS`.
        target: the file or folder that was written.
        target_format: a name of `FORMATS`.
        tensors: how many were written.
        dropped: names of the source that were left out.
        filled: names that the source did not hold; they got the value that training starts from.
        difference: largest difference of features, plain and masked, and of logits to the source, on a fixed image,
            under the source's rule for position tables.
        size: (H, W) of that image.
        own_rule_difference: largest difference under the rule of the target's library; 0 where it is the source's.
        own_rule_size: (H, W) in pixels at which that was measured; not that of the table, where all rules agree.
        notes: what users of the target have to know besides.
        compared: what `difference` is the largest of: "features", "masked patches", "logits".
    """

    source: str
    source_format: str
    target: Path
    target_format: str
    tensors: int
    dropped: tuple[str, ...]
    filled: tuple[str, ...]
    difference: float
    size: tuple[int, int]
    own_rule_difference: float
    own_rule_size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    compared: tuple[str, ...] = ("features",)


def convert(source: str | Path, target: str | Path, config: ConvertConfig) -> Report:
    """Write a model in another format, after proving that it gives the same features.

    Args:
        source: anything that `opendino.load` takes.
        target: what to write; must not exist.
        config: the format, and what to go by.

    Raises:
        CheckpointError: the source cannot be read, or the target not be written.
        ConversionError: the target's format has no place for the model, or gives other features; nothing is written.
        ConfigError: the target's name is that of another kind, or its place cannot be written.
    """
    target, to = Path(target), config.to
    if target.exists():
        raise CheckpointError(f"{target}: exists already; give another name, or remove it")
    if to == "hf" and target.suffix in _FILES:
        raise ConfigError(f"{target}: Hugging Face's layout is a folder; give a name without {target.suffix}")
    if target.suffix in _OTHER_FILES:
        raise ConfigError(
            f"{target}: is no name of weights; a file ends in {', '.join(_FILES)}, a folder in none of these"
        )
    check_place(target.parent, str(target))
    opened = open_model(source, layers=config.layers, num_heads=config.num_heads, img_size=config.img_size)
    image = fixed_image(opened.backbone)
    wanted = features(opened.model, image)
    with _new(target) as partial:
        converted = _write(opened, to, str(source), partial)
        again = open_model(partial, **_not_in_the_file(opened.backbone, partial))
        difference, compared = _compare(opened, again, converted, wanted, image)
        if not difference <= config.tolerance:  # also where it is not a number
            raise ConversionError(
                f"{target}: read back, its features differ from those of {source} by {difference:.1e}, more than "
                f"tolerance={config.tolerance:g}; nothing was written"
            )
    back = set(opened.filled) & set(converted.dropped)  # neither format has them: nothing was lost on the way
    own, own_size = _own_rule(opened, again, to)
    return Report(
        source=str(source),
        source_format=opened.format,
        target=target,
        target_format=to,
        tensors=len(converted.state),
        dropped=opened.dropped + tuple(name for name in converted.dropped if name not in back),
        filled=tuple(name for name in opened.filled if name not in back) + converted.filled,
        difference=difference,
        size=(image.shape[2], image.shape[3]),
        own_rule_difference=own,
        own_rule_size=own_size,
        notes=tuple(_notes(opened, converted, to, target)),
        compared=compared,
    )


def fixed_image(backbone: VisionTransformer) -> Images:
    """The same image for everybody: waves of many lengths, of unit variance, of the model's usual size."""
    return _waves(backbone, tuple(max(side // backbone.patch_size, 1) for side in backbone.input_spec.size))


def _waves(backbone: VisionTransformer, grid: tuple[int, ...]) -> Images:
    height, width = (side * backbone.patch_size for side in grid)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    waves = [torch.sin(0.11 * (c + 1) * rows + 0.07 * columns**1.2 + c) for c in range(backbone.in_chans)]
    return 2**0.5 * torch.stack(waves)[None]


@torch.inference_mode()
def features(model: Model, image: Images) -> dict[str, Float[Tensor, "..."]]:
    """Normed tokens of an image, and of the image with every third patch masked; logits where the model has them."""
    backbone = model.backbone if isinstance(model, LinearClassifier) else model
    found = backbone.forward_features(image)
    masks = torch.arange(found["x_norm_patchtokens"].shape[1])[None] % 3 == 0
    out = {
        "masked": backbone.forward_features(image, masks)["x_norm_patchtokens"],
        "cls": found["x_norm_clstoken"],
        "registers": found["x_norm_regtokens"],
        "patches": found["x_norm_patchtokens"],
    }
    if isinstance(model, LinearClassifier):
        out["logits"] = model(image)
    return out


def _compare(
    opened: Opened, again: Opened, converted: Converted, wanted: Mapping[str, Tensor], image: Images
) -> tuple[float, tuple[str, ...]]:
    """Largest difference, and of what, under the source's rule for positions; leaves it to the model read back."""
    filled = {name.rpartition(".")[2] for name in converted.filled}
    before, after = (set(one.backbone.state_dict()) for one in (opened, again))
    odd = sorted(name for name in before ^ after if not (name.endswith(".gamma") and "lambda1" in filled))
    dropped = {*converted.dropped, *again.filled}
    unlike = isinstance(opened.model, LinearClassifier) != isinstance(again.model, LinearClassifier)
    if odd or (unlike and "linear_head.weight" not in dropped):
        raise ConversionError(
            f"read back, the model has other parts than the source: {some(odd) or 'the classifier'}; "
            "nothing was written; please report this"
        )
    source = opened.backbone
    again.backbone.interpolate_offset = source.interpolate_offset
    again.backbone.interpolate_antialias = source.interpolate_antialias
    found = features(again.model, image)
    if "mask_token" in dropped:
        del found["masked"]
    beside = {"masked": "masked patches", "logits": "logits"}
    compared = ("features", *(said for name, said in beside.items() if name in wanted and name in found))
    return _largest(wanted, found), compared


def _own_rule(opened: Opened, again: Opened, to: str) -> tuple[float, tuple[int, int]]:
    """Largest difference that the rule of the target's library makes, and the size at which it was looked for."""
    source = opened.backbone
    grid = tuple(max(side // source.patch_size, 1) for side in source.input_spec.size)
    if grid == source.grid:  # here no rule resizes; about as much smaller as 224 pixels are than 518
        grid = tuple(max(round(side * 0.43), 1) if side > 1 else 2 for side in grid)
    image = _waves(source, grid)
    set_positions(again.backbone, to)
    alike = all(
        getattr(source, name) == getattr(again.backbone, name)
        for name in ("interpolate_offset", "interpolate_antialias")
    )
    difference = 0.0 if alike else _largest(_unmasked(source, image), _unmasked(again.backbone, image))
    return difference, (image.shape[2], image.shape[3])


def _unmasked(backbone: VisionTransformer, image: Images) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in features(backbone, image).items() if name != "masked"}


def _notes(opened: Opened, converted: Converted, to: str, target: Path) -> Iterator[str]:
    """What the target does not say of the model."""
    labels = opened.model.labels if isinstance(opened.model, LinearClassifier) else None
    if labels and labels != _stand_ins(len(labels)) and "classifier.weight" not in converted.state:
        yield f"labels left out: this format does not hold the names of the {len(labels)} classes"
    backbone, height_width = opened.backbone, [side * opened.backbone.patch_size for side in opened.backbone.grid]
    silent = []
    if target.suffix in _FILES and backbone.num_heads * HEAD_WIDTH != backbone.embed_dim:
        silent.append(f"num_heads={backbone.num_heads}")
    if target.suffix in _FILES and height_width[0] != height_width[1]:
        silent.append(f"img_size=({height_width[0]}, {height_width[1]})")
    if silent:
        yield f"a bare file does not say {' and '.join(silent)}: give it to opendino.load or convert, or write a folder"
    if to == "hf" and _hf_config.whole_ratio(arguments_of(backbone)) % 1:
        yield "mlp_ratio is a fraction, which transformers 5 refuses; opendino.hf and transformers 4 open the folder"
    own = {name: value for name, value in opened.decoding.items() if value != _USUAL.get(name)}
    if own and (to != "official" or target.suffix in _FILES):
        said = ", ".join(f"{name}={value}" for name, value in own.items())
        yield f"the run decoded its images with {said}, which this format does not hold: give it to eval and view"


def _not_in_the_file(backbone: VisionTransformer, partial: Path) -> dict[str, Any]:
    """Arguments that a bare file does not hold, for reading it back; a folder has them in its config.json."""
    if partial.suffix not in _FILES:
        return {}
    height, width = (side * backbone.patch_size for side in backbone.grid)
    return {"num_heads": backbone.num_heads, "img_size": (height, width)}


def _largest(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Not a number where any difference is none, which Python's own `max` would pass over."""
    differences = [(wanted[name] - found[name]).abs() for name in found if name in wanted and wanted[name].numel()]
    return float(torch.stack([difference.max() for difference in differences]).max())


@contextlib.contextmanager
def _new(target: Path) -> Iterator[Path]:
    """A place to write that gets its name when the block ends without an error, and else leaves nothing."""
    try:
        if target.suffix not in _FILES:
            with whole(target) as partial:
                yield partial
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.stem}.partial{target.suffix}")
        try:
            yield partial
            to_disk(partial)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{target}: could not be written ({cause}); make room, or give another place") from error


def _write(opened: Opened, to: str, where: str, partial: Path) -> Converted:
    state = {name: tensor.detach() for name, tensor in opened.model.state_dict().items()}
    if isinstance(opened.model, LinearClassifier):
        state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    converted: Converted = import_module(FORMATS[to]).from_official(state, where)
    if to == "official" and partial.suffix not in _FILES:
        if isinstance(opened.model, LinearClassifier):
            raise ConfigError(f"{where}: a classifier is an official file, not a folder; end the name with .pth")
        decoding = {"decoding": dict(opened.decoding)} if opened.decoding else {}
        save_weights(opened.model, partial, {"converted_from": where, **decoding})
        return converted
    _save(converted.state, partial if partial.suffix in _FILES else partial / WEIGHTS)
    if to == "hf":
        _write_json(
            partial / _hf_config.CONFIG,
            _hf_config.write(arguments_of(opened.backbone), _labels(opened, converted)),
        )
        _write_json(partial / _hf_config.PREPROCESSOR, _hf_config.write_spec(opened.backbone.input_spec))
    elif to == "timm" and partial.suffix not in _FILES:
        arguments = arguments_of(opened.backbone)
        _write_json(partial / "config.json", _timm_config.write(arguments, opened.backbone.input_spec))
    return converted


def _labels(opened: Opened, converted: Converted) -> tuple[str, ...] | None:
    """Names of the classes for a classifier that is written; transformers' own stand-ins where they are not known."""
    if not isinstance(opened.model, LinearClassifier) or "classifier.weight" not in converted.state:
        return None
    return opened.model.labels or _stand_ins(opened.model.linear_head.out_features)


def _stand_ins(classes: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(classes))


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    # Copies: safetensors refuses views, and torch.save would write all of what a view looks into.
    tensors = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_tensors(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
