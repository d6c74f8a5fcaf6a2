# SPDX-License-Identifier: Apache-2.0
"""Health of features and prototypes without labels: rank, spread, norms, prototype use, entropy.

A low loss does not tell a good run from a collapsed one, and even k-NN can stay fair while features collapse; these
figures tell. Each is a pure function of a tensor and can be called from a training loop; `summary` gathers them.

| figure                 | healthy                   | collapsed                          |
|------------------------|---------------------------|------------------------------------|
| effective rank         | tens and more             | 1 to 2                             |
| mean cosine            | near 0                    | towards 1                          |
| centred rank           | tens and more             | 1                                  |
| alpha-ReQ              | around 1                  | far above, or not a number         |
| uniformity             | -2 and lower              | towards 0                          |
| std                    | near 1                    | towards 0                          |
| dead dimensions        | 0                         | towards 1                          |
| prototypes used        | many, perplexity near it  | one or few                         |
| entropy of the mean    | near 1 (parts of ln K)    | near 0                             |
| mean entropy           | clearly below that        | near 0 with the above, or near 1   |
| teacher's KL           | above 0, falling slowly   | 0: nothing left to learn from      |
| unique prototypes      | most of them              | a small part: others are copies    |

Read next: `_features.py`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opendino import config as settings
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.distributed import is_main
from opendino.errors import ConfigError
from opendino.eval._features import FeatureConfig, extract, place
from opendino.eval._heads import Heads, read_heads
from opendino.eval._results import Results, describe
from opendino.eval._sampled import sampled
from opendino.eval._spectrum import alpha_req, mean_std, teacher_kl, uniformity, unique_prototypes
from opendino.eval.adapters import Backbone

_MOST_PAIRED = 2000  # images of which all pairs are compared
_MOST_COMPARED = 8192  # prototypes of which all pairs are compared on a CPU, where more would take seconds
NO_PROTOTYPES = (
    "prototypes are not measured: weights hold the backbone without its heads; heads=RUN reads those of the run's "
    "checkpoint, and while a run goes on metrics.jsonl has their use and entropies, as watch/"
)
"""What the results of a backbone alone say of prototypes."""


@dataclass(frozen=True)
class HealthConfig:
    """Settings of `opendino eval health`.

    Attributes:
        data: images, labels not needed.
        heads: folder of the run that the backbone is of, whose newest checkpoint has the heads: gives figures of the
            prototypes; by default none are read.
        path_column: column of paths in a manifest; found by its name when empty.
        image_column: column of image bytes in a Parquet file; found by its name when empty.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied.
        sample: images whose patches and random views are looked at too: the figures `patch_...`, `lidar` and
            `alignment`; 0 for none.
        views: random views of each of them.
        features: how images become features.
    """

    data: str = ""
    heads: str = ""
    path_column: str = ""
    image_column: str = ""
    value_range: tuple[float, float] | None = None
    orient: bool = True
    sample: int = 128
    views: int = 4
    features: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        if self.sample < 0 or self.views < 2:
            raise ConfigError(
                f"sample = {self.sample}, views = {self.views}: use 0 or more images, and 2 or more views"
            )


class PrototypeUse(NamedTuple):
    """How the images spread over the prototypes.

    Attributes:
        used: prototypes that are the first choice of at least one image.
        share: the same, as part of all prototypes; with n images it cannot exceed n / K.
        perplexity: exp of the entropy of first choices, between 1 and `used`; equal to it when they are equally liked.
    """

    used: int
    share: float
    perplexity: float


class EntropyRatio(NamedTuple):
    """Entropies of prototype probabilities as parts of ln K, each between 0 and 1.

    Attributes:
        of_mean: of the mean over images; 1 when prototypes are used equally, 0 when all images share one.
        mean: mean over images; 0 when every image is sure, 1 when every image is undecided.
    """

    of_mean: float
    mean: float


def run(
    backbone: Backbone,
    config: HealthConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Figures of CLS and mean-patch features over a folder of images; every process of a group calls it.

    Args:
        backbone: moved to `config.features.device`.
        config: data and features.
        out: folder for the JSON file, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: no data named, or fewer than two images.
        DataError: the data cannot be opened, or no image can be read.
    """
    start = time.perf_counter()
    if not config.data:
        raise ConfigError("data is missing: health needs images, labelled or not; give data=FOLDER")
    place(backbone, config.features)
    dataset = open_dataset(
        config.data,
        channels=backbone.input_spec.channels,
        value_range=config.value_range,
        orient=config.orient,
        path_column=config.path_column,
        image_column=config.image_column,
        label_column="none",
    )
    features = extract(backbone, dataset, config.features, what="images")
    if len(features) < 2:
        raise ConfigError(f"data = {config.data}: health compares images and found one; give two or more")
    heads, missing = _heads_of(config, backbone, str((source or {}).get("source", "")))
    figures = {f"cls_{name}": value for name, value in summary(features.cls).items()}
    mean = features.select("patch_mean", normalize=False)
    if heads is not None:
        figures |= _of_prototypes(heads, dataset, features.cls, config)
    figures |= {f"patch_mean_{name}": value for name, value in summary(mean).items()}
    if config.sample:
        figures |= sampled(backbone, dataset, config.features, images=config.sample, views=config.views)
    data = {"source": config.data, "images": len(features), "skipped": list(features.skipped)}
    notes = (f"{len(features.skipped)} images could not be read and were left out",) if features.skipped else ()
    notes = (*notes, *missing)
    seconds = time.perf_counter() - start
    model = describe(backbone, source or {})
    results = Results("health", figures, data, model, settings.to_dict(config), seconds, notes)
    if out is not None and is_main():
        results.write(out)
    return results


def _heads_of(config: HealthConfig, backbone: Backbone, model: str) -> tuple[Heads | None, tuple[str, ...]]:
    """Heads where they are asked for, and what to note where there are none.

    A run is asked for its own heads unless the user says otherwise, so that one without fitting heads is no mistake.
    """
    try:
        heads = read_heads(Path(config.heads), backbone) if config.heads else None
    except ConfigError as error:
        if config.heads != model:
            raise
        return None, (f"prototypes are not measured: {error}",)
    return heads, () if heads is not None else (NO_PROTOTYPES,)


def _of_prototypes(
    heads: Heads, dataset: ImageDataset, cls: Float[Tensor, "n D"], config: HealthConfig
) -> dict[str, float]:
    """Figures of the prototypes, from the teacher's features and the student's of the same images."""
    plain = replace(config.features, cache="")
    seen = extract(heads.student, dataset, plain, what="images, by the student", patches=False)
    told = summary(cls, heads.teacher_probabilities(cls), student=heads.student_logarithms(seen.cls),
                   prototypes=heads.teacher_head.last_layer.weight_v)  # fmt: skip
    return {name: value for name, value in told.items() if name not in summary(cls)}


def summary(
    features: Float[Tensor, "n D"],
    probabilities: Float[Tensor, "n K"] | None = None,
    *,
    student: Float[Tensor, "n K"] | None = None,
    prototypes: Float[Tensor, "K P"] | None = None,
) -> dict[str, float]:
    """Every figure of this file, by name; those of prototypes where probabilities are given.

    Args:
        features: two or more images.
        probabilities: the teacher's, over the prototypes, rows sum to 1.
        student: logarithms of the student's for the same images: gives `teacher_kl`.
        prototypes: one row each: gives `prototypes_unique`, unless there are too many for this device.
    """
    norms = features.float().norm(dim=1)
    figures = {
        "effective_rank": effective_rank(features),
        "centred_rank": effective_rank(features, center=True),
        "uniformity": uniformity(features[:_MOST_PAIRED]),
        "std": mean_std(features),
        "mean_cosine": mean_cosine(features),
        "dead_dimensions": dead_dimensions(features),
        "norm_mean": float(norms.mean()),
        "norm_std": float(norms.std(correction=0)),
    }
    alpha = alpha_req(features)
    if math.isfinite(alpha):  # a handful of images has no spectrum
        figures["alpha_req"] = alpha
    if probabilities is not None:
        use, entropy = prototype_usage(probabilities), entropy_ratio(probabilities)
        figures |= {
            "prototypes_used": float(use.used),
            "prototypes_share": use.share,
            "prototypes_perplexity": use.perplexity,
            "entropy_of_mean": entropy.of_mean,
            "mean_entropy": entropy.mean,
        }
        if student is not None:
            figures["teacher_kl"] = teacher_kl(probabilities, student)
    if prototypes is not None and (prototypes.is_cuda or len(prototypes) <= _MOST_COMPARED):
        figures["prototypes_unique"] = float(unique_prototypes(prototypes))
    return figures


def effective_rank(features: Float[Tensor, "n D"], *, center: bool = False) -> float:
    """RankMe: exp of the entropy of the normalised singular values, between 1 and min(n, D); 0 for all-zero features.

    Not a number when a feature is not finite.

    Args:
        features: one row an image; their common mean counts as one direction.
        center: take that mean away first.

    Source: Garrido et al. 2023, "RankMe", equation 1.
    Differs: zero singular values add nothing, in place of an epsilon of 1e-7 inside the logarithm.
    """
    # Eigenvalues of the smaller Gram matrix, in float64 because squaring halves the digits.
    matrix = features.detach().cpu().double()
    if not bool(matrix.isfinite().all()):
        return math.nan
    if center:
        matrix = matrix - matrix.mean(dim=0)
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    # What rounding leaves of a zero eigenvalue is about 1e-15 of the largest, so 3e-8 after the root.
    singular = singular[singular > 1e-6 * singular.max()]
    return math.exp(_entropy(singular / singular.sum())) if len(singular) else 0.0


def mean_cosine(features: Float[Tensor, "n D"]) -> float:
    """Mean cosine over all pairs of different images, between -1 / (n - 1) and 1.

    Differs from a loop over pairs only in speed: the squared length of the sum of unit vectors holds all of them.
    """
    unit = F.normalize(features.detach().double().cpu(), dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def dead_dimensions(features: Float[Tensor, "n D"], threshold: float = 1e-3) -> float:
    """Share of dimensions whose standard deviation is below a part of the mean one, between 0 and 1.

    1 when nothing varies at all.
    """
    deviation = features.detach().float().std(dim=0, correction=0)
    # Identical rows leave rounding noise, not an exact zero.
    floor = max(threshold * float(deviation.mean()), 1e-6 * float(features.abs().max()))
    return float((deviation <= floor).double().mean())


def prototype_usage(scores: Float[Tensor, "n K"]) -> PrototypeUse:
    """First choices of the images; scores may be probabilities or logits, only their order counts."""
    counts = torch.bincount(scores.detach().argmax(dim=1), minlength=scores.shape[1]).double().cpu()
    used = int((counts > 0).sum())
    return PrototypeUse(used, used / scores.shape[1], math.exp(_entropy(counts / counts.sum())))


def entropy_ratio(probabilities: Float[Tensor, "n K"]) -> EntropyRatio:
    """Entropy of the mean and mean entropy, as parts of ln K.

    Args:
        probabilities: rows that sum to 1; computed in float32 whatever comes in.
    """
    p = probabilities.detach().float()
    rows = torch.special.entr(p).sum(dim=1).mean()
    mean = torch.special.entr(p.mean(dim=0)).sum()
    bound = math.log(p.shape[1])
    return EntropyRatio(float(mean) / bound, float(rows) / bound)


def _entropy(p: Tensor) -> float:
    return float(torch.special.entr(p).sum())
