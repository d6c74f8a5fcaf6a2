# SPDX-License-Identifier: Apache-2.0
"""`opendino.load`: a model from a run, a folder, a file, or a published name.

Read next: `catalog.py` (the names), `convert/` (the formats), `_architecture.py` (how a bare file says what it is).
"""

import difflib
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from opendino.checkpoint import _fetch
from opendino.checkpoint._architecture import assemble, check_claims, check_preset, infer
from opendino.checkpoint._folders import reading, standing
from opendino.checkpoint._reading import INDEX, is_weights, plausible, read, read_json
from opendino.checkpoint._tensors import as_float32, check_ranks
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

KNOWN = ("num_heads", "img_size", "drop_path_rate", "drop_path_uniform", "interpolate_antialias", "interpolate_offset")
"""Arguments of `VisionTransformer` that weights do not show."""

IMAGENET_CLASSES = 1000
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
        decoding: how the run that trained it decoded its images, where an opendino folder recorded it.
    """

    model: Model
    format: str
    dropped: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    decoding: Mapping[str, Any] = MappingProxyType({})

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
        known: for a bare file, arguments of `VisionTransformer` that its shapes do not tell: `num_heads`, `img_size`; a
            `config.json` beside the weights must say the same.

    Returns:
        A backbone; of an `_lc` name and of a Hugging Face classifier, a `LinearClassifier`.

    Raises:
        CheckpointError: there is no such file, or it cannot be read; the message says what was looked for.
        ConversionError: the weights are not those of a DINOv2 model; the message names the keys.
        ConfigError: no name, an argument or a rule that does not exist, or one that contradicts `config.json`.
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
    if not isinstance(name_or_path, str | os.PathLike) or not str(name_or_path).strip():
        raise ConfigError(
            f"opendino.load: {name_or_path!r} names nothing; give a run folder, a folder or file of weights, or a "
            "published name such as dinov2_vits14"
        )
    _check_known(known)
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


def _check_known(known: Mapping[str, Any]) -> None:
    for name in known:
        if name not in KNOWN:
            close = difflib.get_close_matches(name, (*KNOWN, "positions", "layers"), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"opendino.load: {name} is no argument; there are positions, layers, {', '.join(KNOWN)}{hint}"
            )


def _agreed(
    folder: Path, stated: Mapping[str, Any], known: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """What `config.json` states and the caller knows, which must not contradict each other."""
    for name, value in known.items():
        if name in stated and _pair(stated[name]) != _pair(value):
            raise ConfigError(
                f"{folder}: {name}={value} was given, and {CONFIG} says {stated[name]}; leave it out, or mend the file"
            )
    return {**defaults, **stated, **known}


def _pair(value: Any) -> Any:  # noqa: ANN401  a side, two sides, or a number
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


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
        provenance = config.get("provenance")
        decoding = provenance.get("decoding", {}) if isinstance(provenance, dict) else {}
        return Opened(load_weights(folder), "opendino", decoding=decoding)
    where = str(folder)
    if config.get("model_type") in _hf_config.MODEL_TYPES:
        beside = folder / _hf_config.PREPROCESSOR
        preprocessor = read_json(beside) if beside.is_file() else {}
        with plausible(folder / CONFIG):
            given = _agreed(folder, _hf_config.read(config, where), known, _hf_config.DEFAULTS)
            rule, claims = _hf_config.rule_of(config, where), _hf_config.claims(config)
            wants_head = _hf_config.wants_head(config)
        opened = _assemble(str(weights), read(weights), given, "hf", rule)
        check_claims(where, opened.backbone, claims)
        if wants_head and not isinstance(opened.model, LinearClassifier):
            raise ConversionError(
                f"{where}: its config.json says {config['architectures'][0]}, and the weights hold no classifier; get "
                "the weights that belong to it, or write the backbone's class (Dinov2Model) into architectures"
            )
        with plausible(beside):
            spec = _hf_config.read_spec(preprocessor, opened.backbone.in_chans)
        if isinstance(opened.model, LinearClassifier):
            with plausible(folder / CONFIG):
                opened.model.labels = _hf_config.labels_of(config, opened.model.linear_head.out_features, where)
    elif "architecture" in config:
        with plausible(folder / CONFIG):
            given, claims = _agreed(folder, _timm_config.read(config), known, {}), _timm_config.claims(config)
        opened = _assemble(str(weights), read(weights), given, "timm")
        check_claims(where, opened.backbone, claims)
        with plausible(folder / CONFIG):
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
    opened = _assemble(str(path), content, known, "official")
    _check_published(str(path), opened, entry, layers)
    return opened


def _check_published(where: str, opened: Opened, entry: Entry, layers: int) -> None:
    """Whether a model is what its published name says."""
    check_preset(where, opened.backbone, entry.name, entry.preset)
    model = opened.model
    found = (model.layers, model.linear_head.out_features) if isinstance(model, LinearClassifier) else None
    wanted = (layers, IMAGENET_CLASSES) if layers else None
    if found != wanted:
        raise ConversionError(
            f"{where}: {entry.name} {_of_head(wanted)}, the file {_of_head(found)}; another file stands in its place: "
            "remove it and load again, or give its path"
        )


def _of_head(head: tuple[int, int] | None) -> str:
    return "has no classifier" if head is None else f"has a classifier of {head[1]} classes over {head[0]} blocks"


def _from_hub(name: str, entry: Entry | None, known: Mapping[str, Any]) -> Opened:
    repository = _HUB_PREFIX.sub("", name) if entry is None else entry.home
    # A mistyped path has the form of a repository; where its first part is a folder here, a path was meant.
    # The same goes for what ends as a file of weights does.
    a_path = entry is None and (Path(repository).parent.is_dir() or is_weights(Path(repository)))
    if not _REPOSITORY.fullmatch(repository) or a_path or (entry is None and _misspelt(repository)):
        raise CheckpointError(_missing(name))
    try:
        folder = _fetch.hub_folder(repository)
    except CheckpointError as error:
        if entry is None:
            advice = "" if nearest(name) else f"; as a repository: {error}"
            raise CheckpointError(f"{_missing(name)}{advice}") from None
        raise
    weights = _inside(folder)
    if entry is not None and weights.name == WEIGHTS:
        _fetch.check_file(weights, entry)
    opened = _from_folder(weights, known)
    if entry is not None:
        _check_published(str(weights), opened, entry, max(entry.heads, default=0))
    return opened


def _assemble(
    where: str,
    content: Mapping[str, Any],
    known: Mapping[str, Any],
    format_name: str | None = None,
    rule: str | None = None,
) -> Opened:
    """The model of a file's content; the format is told by its names, and the rule for positions by the format."""
    content = flat(where, content)
    check_ranks(where, content)
    format_name = format_name or format_of(content)
    converted: Converted = import_module(FORMATS[format_name]).to_official(content, where)
    head = {name: tensor for name, tensor in converted.state.items() if name.startswith("linear_head.")}
    state = {name: tensor for name, tensor in converted.state.items() if name not in head}
    resizing = positions_of(rule or format_name, "register_tokens" in state)
    arguments = infer(where, state, {**resizing, **known})
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
    model.linear_head.load_state_dict(
        {name.removeprefix("linear_head."): tensor for name, tensor in as_float32(where, head).items()}, strict=True
    )
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


def _misspelt(repository: str) -> bool:
    """Whether a name almost is that of a published model of the same owner, and nothing of that name was downloaded."""
    near = find(nearest(repository) or "")
    same_owner = near is not None and near.home.partition("/")[0] == repository.partition("/")[0]
    return same_owner and not _fetch.is_cached(repository)


def _missing(name: str) -> str:
    if name in PRESETS:
        return f"{name}: is an architecture without weights; build it by opendino.create('{name}'), or give a path"
    close = nearest(name)
    hint = f"did you mean {close}?" if close else "give a run folder, a folder or file of weights, or a published name"
    return f"{name}: no such file or folder; {hint}"
