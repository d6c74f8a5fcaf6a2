# SPDX-License-Identifier: Apache-2.0
"""Image towers of open_clip, by `MODEL/PRETRAINED` (`ViT-B-32/laion2b_s34b_b79k`), or MODEL/path of a weights file."""

from typing import Any

from opendino.data.normalization import normalization
from opendino.errors import ConfigError, ModelError
from opendino.eval.adapters._base import Adapter, TokenAdapter
from opendino.models.input_spec import InputSpec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def open_model(name: str) -> Adapter:
    """The tower of images; features are those before the projection into the space that images and text share.

    Raises:
        ConfigError: open_clip does not know the name.
        ModelError: the tower is not a vision transformer.
    """
    import open_clip  # pyrefly: ignore[missing-import]

    architecture, _, pretrained = name.partition("/")
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained or None)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"open_clip:{name}: cannot be opened ({reason}); `open_clip.list_pretrained()` has the pairs"
        ) from None
    return adapt(model.visual)


def adapt(visual: Any) -> Adapter:  # noqa: ANN401  open_clip's classes have no common type
    """The face over a tower in memory.

    Raises:
        ModelError: the tower is not open_clip's vision transformer.
    """
    patch, size = getattr(visual, "patch_size", None), getattr(visual, "image_size", None)
    if patch is None or size is None:
        raise ModelError(
            f"open_clip: a tower of {type(visual).__name__} has no patches; give one of vision transformers"
        )
    side = (size, size) if isinstance(size, int) else (size[0], size[1])
    mean, std = getattr(visual, "image_mean", None) or CLIP_MEAN, getattr(visual, "image_std", None) or CLIP_STD
    spec = InputSpec(side, 3, *normalization(3, mean, std))
    visual.eval()
    return TokenAdapter(visual, visual, patch if isinstance(patch, int) else patch[0], spec, fixed_size=True)
