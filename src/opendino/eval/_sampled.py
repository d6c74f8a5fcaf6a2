# SPDX-License-Identifier: Apache-2.0
"""Figures that need patch tokens, or several random views, of a sample of images; `health.py` adds them to its own."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opendino.data.crops import DRAWS, cut, flip, random_box, resize, size_of
from opendino.data.datasets import ImageDataset
from opendino.data.decode import match_channels
from opendino.data.samplers import permute
from opendino.data.transforms import EvalTransform
from opendino.errors import DataError
from opendino.eval._dense import evaluating, feature_maps
from opendino.eval._features import FeatureConfig, tokens_of, transform_of
from opendino.eval._spectrum import alignment, high_norm_share, lidar, patch_similarity
from opendino.eval.adapters import Backbone

_SCALE, _ASPECT = (0.32, 1.0), (3 / 4, 4 / 3)
_SEED = 0


@torch.no_grad()
def sampled(
    backbone: Backbone, dataset: ImageDataset, config: FeatureConfig, *, images: int, views: int
) -> dict[str, float]:
    """`patch_similarity`, `patch_high_norm_share`, `lidar` and `alignment`; every process computes the same.

    Views are the global crops of pretraining without colours: a third of the area and more, mirrored or not.

    Args:
        backbone: any.
        dataset: images; unreadable ones are passed over.
        config: size and precision.
        images: most images of the sample, the same ones every time.
        views: random views of each.
    """
    transform, device = transform_of(backbone, config), next(backbone.parameters()).device
    rows = permute(np.arange(min(images, len(dataset))), len(dataset), _SEED, 0)
    similarities, norms, seen = [], [], []
    with evaluating(backbone):
        for row in rows.tolist():
            pictures = _views(dataset, row, transform, views)
            if pictures is None:
                continue
            pictures = pictures.to(device)
            whole = pictures[:1]
            norms.append(_patches(backbone, whole, config, norm=False))
            similarities.append(patch_similarity(_patches(backbone, whole, config, norm=True)))
            seen.append(tokens_of(backbone, pictures[1:], 1, config.precision, patches=False)[:, 0].cpu())
    if len(seen) < 2:
        return {}
    features = torch.stack(seen)
    return {
        "patch_similarity": float(np.mean(similarities)),
        "patch_high_norm_share": high_norm_share(torch.cat(norms)),
        "lidar": lidar(features),
        "alignment": alignment(features[:, 0], features[:, 1]),
    }


def _patches(backbone: Backbone, images: Tensor, config: FeatureConfig, *, norm: bool) -> Float[Tensor, "B N D"]:
    ((grid, _),) = feature_maps(backbone, images, [backbone.depth - 1], norm=norm, precision=config.precision)
    return grid.flatten(2).transpose(1, 2).cpu()


def _views(dataset: ImageDataset, row: int, transform: EvalTransform, views: int) -> Tensor | None:
    """The image as evaluation sees it, and random views of it."""
    try:
        image = match_channels(dataset.image(row), transform.channels)
    except (DataError, OSError):
        return None
    pictures = [transform(image)]
    for view in range(views):
        draws = np.random.default_rng([_SEED, row, view]).random(DRAWS + 1)
        part = resize(cut(image, random_box(*size_of(image), _SCALE, _ASPECT, draws[1:].tolist())), *transform.size)
        pictures.append(transform.to_tensor(flip(part) if draws[0] < 0.5 else part))
    return torch.stack(pictures)
