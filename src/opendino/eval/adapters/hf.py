# SPDX-License-Identifier: Apache-2.0
"""Vision models of transformers: DINOv2, ViT, DeiT, BEiT, CLIP, SigLIP and others, from a repository or a folder."""

import inspect
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opendino.data.normalization import normalization
from opendino.errors import ConfigError, ModelError
from opendino.eval.adapters._base import Adapter, MapAdapter, TokenAdapter
from opendino.models.input_spec import InputSpec


def open_model(name: str) -> Adapter:
    """A model by its repository or folder, run by transformers' own code.

    Of a model of images and text only the tower of images is kept. Features are those before any projection.

    Raises:
        ConfigError: there is no such model.
        ModelError: it has no tower of images.
    """
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"hf:{name}: transformers cannot open it ({_line(error)}); check the name") from None
    return adapt(model, _preprocessor(name))


def adapt(model: nn.Module, preprocessor: dict[str, Any] | None = None) -> Adapter:
    """The face over a model in memory.

    Args:
        model: of transformers.
        preprocessor: content of its `preprocessor_config.json`; mean and deviation are read from it.

    Raises:
        ModelError: it has no tower of images.
    """
    tower = getattr(model, "vision_model", model).eval()
    own: Any = model.config
    config = getattr(own, "vision_config", own)
    spec = _spec(config, preprocessor or {}, type(model).__name__)
    flexible = "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters
    # DINOv2 resizes its positions unasked.
    extra = {"interpolate_pos_encoding": True} if flexible else {}
    fixed = not (flexible or str(config.model_type).startswith("dino"))

    def run(x: Tensor) -> Any:  # noqa: ANN401  transformers' output
        return tower(pixel_values=x, **extra)

    patch = getattr(config, "patch_size", None)
    # Swin and its kin have a patch size, and a grid that shrinks.
    if patch is None or hasattr(config, "depths"):
        return MapAdapter(tower, lambda x: run(x).last_hidden_state, spec)
    patch = patch if isinstance(patch, int) else patch[0]
    return TokenAdapter(tower, run, patch, spec, fixed)


def _spec(config: Any, preprocessor: dict[str, Any], where: str) -> InputSpec:  # noqa: ANN401  transformers' config
    channels = getattr(config, "num_channels", None)
    if channels is None:
        raise ModelError(f"hf: {where} has no images for input (no num_channels); give a vision model")
    size = getattr(config, "image_size", None) or 224
    side = size if isinstance(size, int) else size[0]
    mean, std = preprocessor.get("image_mean", ()), preprocessor.get("image_std", ())
    return InputSpec((side, side if isinstance(size, int) else size[1]), channels, *normalization(channels, mean, std))


def _preprocessor(name: str) -> dict[str, Any]:
    """Content of `preprocessor_config.json`, empty where there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        name,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
