# SPDX-License-Identifier: Apache-2.0
"""`opendino.load`: a model from a run, a folder, a file, or a published name.

Read next: `catalog.py` (the names), `convert/` (the formats), `_architecture.py` (how a bare file says what it is).
"""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from opendino.checkpoint import _fetch
from opendino.checkpoint._architecture import assemble, check_claims, infer
from opendino.checkpoint._folders import reading, standing
from opendino.checkpoint._reading import INDEX, is_weights, read, read_json
from opendino.checkpoint.catalog import Entry, find, nearest
from opendino.checkpoint.convert import FORMATS, _hf_config, _timm_config, format_of
from opendino.checkpoint.convert._table import Converted
from opendino.checkpoint.convert.official import flat
from opendino.checkpoint.weights import CONFIG, KIND, WEIGHTS, load_weights
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.models.classifier import LinearClassifier
from opendino.models.input_spec import InputSpec
from opendino.models.positions import positions as positions_of
from opendino.models.positions import set_positions
from opendino.models.presets import PRESETS, PUBLISHED_EVAL_SIZE
from opendino.models.vision_transformer import VisionTransformer

RUN_WEIGHTS = "weights"
"""Folder inside a run that holds the newest teacher backbone."""

Model = VisionTransformer | LinearClassifier

_PUBLISHED_TABLE = 518  # pixels
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PREFIX = re.compile(r"hf[-_]hub:")
_IN_A_FOLDER = (WEIGHTS, WEIGHTS + INDEX, "pytorch_model.bin")


class Opened(NamedTuple):
    """A model, and what its file was.

    Attributes:
        model: in float32, on the CPU, in evaluation mode.
        format: "opendino", or a name of `opendino.checkpoint.convert.FORMATS`.
        dropped: names of the file that the model has no place for.
        filled: official names that the file did not hold; they got the value that training starts from.
    """

    model: Model
    format: str
    dropped: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()

    @property
    def backbone(self) -> VisionTransformer:
        """The model, or what its classifier stands on."""
        return self.model.backbone if isinstance(self.model, LinearClassifier) else self.model


def load(
    name_or_path: str | Path,
    *,
    positions: str | None = None,
    layers: int | None = None,
    **known: Any,  # noqa: ANN401  arguments of the backbone
) -> Model:
    """Open a model, in float32, on the CPU and in evaluation mode; `.input_spec` says what images it expects.

    Args:
        name_or_path: one of
            a run folder (its `weights/`, the teacher's newest backbone), or a weights folder that opendino wrote;
            a folder in the layout of Hugging Face or of timm (`config.json` and weights);
            a `.pth` or `.safetensors` file with the names of one of the three, also a training checkpoint with the
            key "teacher";
            an official name (`dinov2_vits14`, `..._reg`, `..._lc`), a repository on the Hugging Face hub
            (`facebook/dinov2-base`), or a timm name (`vit_base_patch14_dinov2.lvd142m`), from the cache or the network.
        positions: rule that resizes the position table: "official", "hf" or "timm"; by default that of the source.
        layers: blocks that the classifier of an official `_lc` name reads, 1 or 4 (default).
        known: for a bare file, arguments of `VisionTransformer` that its shapes do not tell: `num_heads`, `img_size`.

    Returns:
        A backbone; of an `_lc` name and of a Hugging Face classifier, a `LinearClassifier`.

    Raises:
        CheckpointError: there is no such file, or it cannot be read; the message says what was looked for.
        ConversionError: the weights are not those of a DINOv2 model; the message names the keys.
        ConfigError: a rule or a number of layers that does not exist.
    """
    return open_model(name_or_path, positions=positions, layers=layers, **known).model


def load_backbone(name_or_path: str | Path, **settings: Any) -> VisionTransformer:  # noqa: ANN401  those of `load`
    """As `load`, without the classifier where there is one."""
    return open_model(name_or_path, **settings).backbone


def open_model(
    name_or_path: str | Path,
    *,
    positions: str | None = None,
    layers: int | None = None,
    **known: Any,  # noqa: ANN401  arguments of the backbone
) -> Opened:
    """As `load`, and say what the file was."""
    path, entry = Path(name_or_path), None
    known = {name: value for name, value in known.items() if value is not None}
    if not standing(path).exists():
        entry = find(str(name_or_path))
    if layers is not None and (entry is None or layers not in entry.heads):
        raise ConfigError(f"{name_or_path}: layers={layers} is for official names that end in _lc, and 1 or 4")
    if entry is None and standing(path).exists():
        # A run that is under way replaces its weights now and then.
        opened = reading(lambda: _from_path(standing(path), known), path, path / RUN_WEIGHTS, path.parent)
    elif entry is not None and entry.source == "official":
        opened = _from_official(entry, layers or max(entry.heads, default=0), known)
    else:
        opened = _from_hub(str(name_or_path), entry, known)
    if positions is not None:
        set_positions(opened.backbone, positions)
    return opened


def _from_path(path: Path, known: Mapping[str, Any]) -> Opened:
    if path.is_dir():
        return _from_folder(_inside(path), known)
    if not is_weights(path):
        raise CheckpointError(f"{path}: is not a weights file; give a folder, or a .pth or .safetensors file")
    if path.name in _IN_A_FOLDER and (path.parent / CONFIG).is_file():
        return _from_folder(path, known)
    return _assemble(str(path), read(path), known)


def _from_folder(weights: Path, known: Mapping[str, Any]) -> Opened:
    """A weights file with its `config.json` beside it."""
    folder = weights.parent
    if not (folder / CONFIG).is_file():
        return _assemble(str(weights), read(weights), known)
    config = read_json(folder / CONFIG)
    if config.get("kind") == KIND:
        if known:
            raise ConfigError(f"{folder}: {', '.join(known)} is for bare files; this folder's {CONFIG} says it")
        return Opened(load_weights(folder), "opendino")
    where = str(folder)
    if config.get("model_type") in _hf_config.MODEL_TYPES:
        beside = folder / _hf_config.PREPROCESSOR
        preprocessor = read_json(beside) if beside.is_file() else {}
        given = _hf_config.read(config, where) | dict(known)
        opened = _assemble(str(weights), read(weights), given, "hf")
        check_claims(where, opened.backbone, _hf_config.claims(config))
        spec = _hf_config.read_spec(preprocessor, opened.backbone.in_chans)
        if isinstance(opened.model, LinearClassifier):
            opened.model.labels = _hf_config.labels_of(config, opened.model.linear_head.out_features)
    elif "architecture" in config:
        opened = _assemble(str(weights), read(weights), _timm_config.read(config) | dict(known), "timm")
        check_claims(where, opened.backbone, _timm_config.claims(config))
        spec = _timm_config.read_spec(config, opened.backbone.in_chans)
    else:
        raise CheckpointError(
            f"{folder / CONFIG}: describes {config.get('model_type', 'something else')}, not a DINOv2 model; give a "
            "folder of opendino, transformers (model_type dinov2 or dinov2_with_registers) or timm"
        )
    if spec is not None:
        opened.backbone.input_spec = spec
    return opened


def _from_official(entry: Entry, layers: int, known: Mapping[str, Any]) -> Opened:
    path = _fetch.official_file(entry, entry.file)
    content = dict(flat(str(path), read(path)))
    if layers:
        file = _fetch.official_file(entry, entry.head_file(layers))
        content |= {f"linear_head.{name}": tensor for name, tensor in flat(str(file), read(file)).items()}
    return _assemble(str(path), content, known, "official")


def _from_hub(name: str, entry: Entry | None, known: Mapping[str, Any]) -> Opened:
    repository = _HUB_PREFIX.sub("", name) if entry is None else entry.home
    # A mistyped path has the form of a repository; where its first part is a folder here, a path was meant.
    if not _REPOSITORY.fullmatch(repository) or (entry is None and Path(repository).parent.is_dir()):
        raise CheckpointError(_missing(name))
    try:
        folder = _fetch.hub_folder(repository)
    except CheckpointError as error:
        raise CheckpointError(str(error) if entry else f"{_missing(name)}; as a repository: {error}") from None
    weights = _inside(folder)
    if entry is not None and weights.name == WEIGHTS:
        _fetch.check_size(weights, entry)
    return _from_folder(weights, known)


def _assemble(
    where: str, content: Mapping[str, Any], known: Mapping[str, Any], format_name: str | None = None
) -> Opened:
    """The model of a file's content; the format is told by its names unless it is known."""
    content = flat(where, content)
    format_name = format_name or format_of(content)
    converted: Converted = import_module(FORMATS[format_name]).to_official(content, where)
    head = {name: tensor for name, tensor in converted.state.items() if name.startswith("linear_head.")}
    state = {name: tensor for name, tensor in converted.state.items() if name not in head}
    rule = positions_of(format_name, "register_tokens" in state)
    arguments = infer(where, state, {**rule, **known})
    backbone = assemble(where, arguments, state)
    if arguments["img_size"] == _PUBLISHED_TABLE:
        backbone.input_spec = InputSpec.default((PUBLISHED_EVAL_SIZE, PUBLISHED_EVAL_SIZE), backbone.in_chans)
    model = _with_head(where, backbone, head) if head else backbone
    return Opened(model, format_name, converted.dropped, converted.filled)


def _with_head(where: str, backbone: VisionTransformer, head: Mapping[str, Tensor]) -> LinearClassifier:
    weight, bias = head.get("linear_head.weight"), head.get("linear_head.bias")
    if weight is None or bias is None or weight.ndim != 2 or tuple(bias.shape) != (weight.shape[0],):
        raise ConversionError(
            f"{where}: the classifier has {', '.join(f'{n} {tuple(t.shape)}' for n, t in head.items())}; "
            "wanted a weight [classes, width] and a bias [classes]"
        )
    width = backbone.embed_dim
    if weight.shape[1] % width or not 1 < weight.shape[1] // width <= 1 + backbone.depth:
        raise ConversionError(
            f"{where}: linear_head.weight has {weight.shape[1]} columns, which is not the CLS of some blocks and "
            f"a mean patch of width {width}"
        )
    model = LinearClassifier(backbone, weight.shape[0], weight.shape[1] // width - 1)
    model.linear_head.load_state_dict({"weight": weight, "bias": bias}, strict=True)
    return model.eval()


def _inside(folder: Path) -> Path:
    for place in (standing(folder / RUN_WEIGHTS), folder):
        for name in _IN_A_FOLDER:
            if (place / name).is_file():
                return place / name
    if (folder / "config.yaml").is_file():
        raise CheckpointError(
            f"{folder}: this run has not written {RUN_WEIGHTS}/ yet; let it reach its first checkpoint, or continue it"
        )
    if (folder / "state.json").is_file():
        raise CheckpointError(f"{folder}: is a checkpoint inside a run; give the run folder itself")
    raise CheckpointError(
        f"{folder}: holds no weights; looked for {RUN_WEIGHTS}/{WEIGHTS} (a run folder) and {', '.join(_IN_A_FOLDER)}"
    )


def _missing(name: str) -> str:
    if name in PRESETS:
        return f"{name}: is an architecture without weights; build it by opendino.create('{name}'), or give a path"
    close = nearest(name)
    hint = f"did you mean {close}?" if close else "give a run folder, a folder or file of weights, or a published name"
    return f"{name}: no such file or folder; {hint}"
