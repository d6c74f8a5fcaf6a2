# SPDX-License-Identifier: Apache-2.0
"""How far a backbone's features have moved from another's, without labels: the report of an adaptation.

| figure     | 1 means                                        | blind to                                |
|------------|------------------------------------------------|-----------------------------------------|
| cosine     | every image has the feature that it had        | nothing; a mere rotation lowers it      |
| cka        | the same similarities of images to each other  | rotation, shift, one scale of all       |
| neighbours | the same nearest images                        | what leaves the nearest images in place |

Each is taken of CLS and of the mean patch. A head or index made on the old features needs a cosine near 1; what is made
anew, such as a k-NN, only the other two. Low figures are no fault in themselves: on images unlike those of the start
features have to move. Read next: `_features.py`; `train/adapt.py` writes the report.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opendino import config as settings
from opendino.config import check_numbers, expand_home
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.rows import sample
from opendino.distributed import is_main
from opendino.errors import ConfigError
from opendino.eval._features import FeatureConfig, Features, extract, place
from opendino.eval._results import Results, describe
from opendino.eval.adapters import Backbone, open_backbone


@dataclass(frozen=True)
class DriftSettings:
    """What of two backbones is compared, and what counts as far.

    Attributes:
        sample: most images that are looked at, the same ones every time.
        k: nearest images that are compared.
        limit: 1 - CKA from which on a warning is given, 0 to 1; 1 for none.
    """

    sample: int = 1000
    k: int = 10
    limit: float = 0.3

    def __post_init__(self) -> None:
        check_numbers("drift", vars(self), {"sample": (3, 100_000), "k": (1, 1000), "limit": (0, 1)})


@dataclass(frozen=True)
class DriftConfig:
    """Settings of `opendino eval drift`.

    Attributes:
        data: images, labels not needed; best such that neither model was trained on.
        against: the model of before; anything that can be measured.
        path_column: column of paths in a manifest; found by its name when empty.
        image_column: column of image bytes in a Parquet file; found by its name when empty.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied.
        drift: what is compared.
        features: how images become features, of both models alike.
    """

    data: str = ""
    against: str = ""
    path_column: str = ""
    image_column: str = ""
    value_range: tuple[float, float] | None = None
    orient: bool = True
    drift: DriftSettings = field(default_factory=DriftSettings)
    features: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", expand_home(self.data))


def run(
    backbone: Backbone,
    config: DriftConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Compare a backbone with the one that `config.against` names; every process of a group calls it.

    Args:
        backbone: the model of now; moved to `config.features.device`.
        config: images, and the model of before.
        out: folder for the JSON file, or None.
        source: where the model of now came from, for the record.

    Raises:
        ConfigError: no data or no other model named, or fewer than three images.
        DataError: the data cannot be opened, or no image can be read.
    """
    start = time.perf_counter()
    for name, value, what in (("data", config.data, "FOLDER"), ("against", config.against, "MODEL, the one of before")):
        if not value:
            raise ConfigError(f"{name} is missing: drift compares two models on images; give {name}={what}")
    before = open_backbone(config.against)
    seen = []
    for model in (before, backbone):
        images = open_dataset(
            config.data,
            channels=model.input_spec.channels,
            value_range=config.value_range,
            orient=config.orient,
            path_column=config.path_column,
            image_column=config.image_column,
            label_column="none",
        )
        seen.append(_features(model, images, config.drift, config.features))
    figures = compare(seen[0], seen[1], config.drift.k)
    notes = warnings(figures, config.drift.limit)
    data = {"source": config.data, "images": len(seen[1]), "against": describe(before, {"source": config.against})}
    seconds = time.perf_counter() - start
    model = describe(backbone, source or {})
    results = Results("drift", figures, data, model, settings.to_dict(config), seconds, tuple(notes))
    if out is not None and is_main():
        results.write(out)
    return results


def between(
    before: Backbone, after: Backbone, images: ImageDataset, config: DriftSettings, features: FeatureConfig
) -> dict[str, float]:
    """`compare` of two backbones that take the same images.

    Args:
        before: the backbone of the start.
        after: the backbone of now.
        images: opened with the channels of both.
        config: sample and neighbours.
        features: how images become features.
    """
    old, new = (_features(model, images, config, features) for model in (before, after))
    return compare(old, new, config.k)


def _features(model: Backbone, images: ImageDataset, config: DriftSettings, features: FeatureConfig) -> Features:
    found = extract(place(model, features), sample(images, config.sample), features, what="drift")
    if len(found) < 3:
        raise ConfigError(f"{images.name}: drift compares images with each other and found {len(found)}; give three")
    return found


def compare(before: Features, after: Features, k: int) -> dict[str, float]:
    """Every figure of this file, `cls_...` and `patch_mean_...`; each is at most 1, and 1 where nothing has moved.

    Args:
        before: of some images.
        after: of the same images; those that only one model could read are left out.
        k: nearest images; fewer where there are not so many.
    """
    figures = {}
    common = [torch.isin(one.rows, other.rows) for one, other in ((before, after), (after, before))]
    for kind in ("cls", "patch_mean"):
        old, new = (
            features.select(kind, normalize=False)[rows] for features, rows in zip((before, after), common, strict=True)
        )
        if old.shape == new.shape:
            cosines = F.cosine_similarity(old.double(), new.double(), dim=1)
            figures[f"{kind}_cosine"] = float(cosines.mean())
            figures[f"{kind}_cosine_low"] = float(cosines.quantile(0.05))
        figures[f"{kind}_cka"] = linear_cka(old, new)
        figures[f"{kind}_neighbours"] = neighbour_overlap(old, new, min(k, len(old) - 1))
    return figures


def warnings(figures: Mapping[str, float], limit: float) -> list[str]:
    """A sentence for each kind of feature whose 1 - CKA is above a limit."""
    return [
        f"{kind}: CKA with the start is {figures[f'{kind}_cka']:.2f}, so the features moved by more than drift.limit = "
        f"{limit:g}; make anew what was made for the old ones, or use fewer steps, a lower optim.base_lr or adapt.lora"
        for kind in ("cls", "patch_mean")
        if 1 - figures[f"{kind}_cka"] > limit
    ]


def linear_cka(x: Float[Tensor, "n Dx"], y: Float[Tensor, "n Dy"]) -> float:
    """Linear centred kernel alignment of two sets of features of the same images, 0 to 1, computed in float64.

    1 where one is a rotation, a shift or a multiple of the other; 0 where one of them is constant.

    Args:
        x: features of n images.
        y: others of the same images, of any width.

    Source: Kornblith et al. 2019, equation 4 with linear kernels; the biased estimate, which few images raise.
    """
    x, y = (part.double() - part.double().mean(dim=0) for part in (x, y))
    own = (x.T @ x).norm() * (y.T @ y).norm()
    return float((x.T @ y).square().sum() / own) if own > 0 else 0.0


def neighbour_overlap(x: Float[Tensor, "n Dx"], y: Float[Tensor, "n Dy"], k: int) -> float:
    """Share of the k nearest images, by cosine, that are the same in both; by chance k / (n - 1).

    Args:
        x: features of n images.
        y: others of the same images, of any width.
        k: nearest images, at most n - 1.

    Source: "mutual k-nearest neighbours", Huh et al. 2024, section 2.
    """
    chosen = []
    for features in (x, y):
        directions = F.normalize(features.double(), dim=1)
        similarities = (directions @ directions.T).fill_diagonal_(-2)  # an image is no neighbour of itself
        chosen.append(torch.zeros_like(similarities).scatter_(1, similarities.topk(k, dim=1).indices, 1))
    return float((chosen[0] * chosen[1]).sum() / (k * len(x)))
