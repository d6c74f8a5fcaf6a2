# SPDX-License-Identifier: Apache-2.0
"""Models of timm, by timm's names (`vit_base_patch16_224.augreg_in21k`, `local-dir:PATH`, ...), with their weights."""

from typing import Any

from torch import nn

from opendino.data.normalization import normalization
from opendino.errors import ConfigError
from opendino.eval.adapters._base import Adapter, MapAdapter, TokenAdapter
from opendino.models.input_spec import InputSpec


def open_model(name: str, pretrained: bool = True) -> Adapter:
    """A model by its name, run by timm's own code.

    Args:
        name: as `timm.create_model` takes it.
        pretrained: whether to get the weights; without, they are random.

    Raises:
        ConfigError: timm does not know the name, or cannot get its weights.
        ModelError: the model gives neither tokens nor a map.
    """
    import timm  # pyrefly: ignore[missing-import]

    fixed = False
    try:
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # the argument is that of plain vision transformers
            model = timm.create_model(name, pretrained=pretrained, num_classes=0)
            fixed = True
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"timm:{name}: timm cannot open it ({reason}); `timm.list_models()` has the names") from None
    return adapt(model, fixed)


def adapt(model: Any, fixed: bool = False) -> Adapter:  # noqa: ANN401  timm's classes have no common type
    """The face over a model in memory; convolutions take any size whatever `fixed` says."""
    data = {**getattr(model, "pretrained_cfg", {})}
    channels, height, width = data.get("input_size", (3, 224, 224))
    spec = InputSpec((height, width), channels, *normalization(channels, data.get("mean", ()), data.get("std", ())))
    model.eval()
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if patch is None or not isinstance(getattr(model, "blocks", None), nn.Module):
        return MapAdapter(model, model.forward_features, spec)
    return TokenAdapter(model, model.forward_features, patch if isinstance(patch, int) else patch[0], spec, fixed)
