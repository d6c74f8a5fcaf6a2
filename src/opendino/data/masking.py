# SPDX-License-Identifier: Apache-2.0
"""Which patches of which global crops are hidden from the student; read `data/collate.py` next.

Half of a batch's crops get a mask. The masked shares are stratified over the batch, so each batch holds light and
heavy masks and the number of masked patches hardly varies from batch to batch.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from opendino.errors import ConfigError

TRIES_PER_BLOCK = 10
"""Draws of a rectangle before a mask is left as it is, possibly short of its target."""


@dataclass(frozen=True)
class MaskConfig:
    """Which share of the crops is masked, and by how much.

    Attributes:
        probability: share of a batch's global crops that get a mask, 0 to 1.
        ratio: smallest and largest share of masked patches in a masked crop, 0 to 1.
        min_block: smallest area of a drawn rectangle, in patches.
        aspect: smallest and largest height over width of a drawn rectangle.
        pad: whether the list of masked patches is filled up to one of a few lengths, for which code is compiled
            once; what is filled in weighs nothing. "auto" does it on CUDA devices, "always" anywhere.
    """

    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    min_block: int = 4
    aspect: tuple[float, float] = field(default=(0.3, 1 / 0.3))
    pad: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"masks.probability = {self.probability} is not a share of the crops; use 0 to 1")
        if not 0 <= self.ratio[0] <= self.ratio[1] <= 1:
            raise ConfigError(f"masks.ratio = {self.ratio} is not a range of shares; use two rising numbers of 0 to 1")
        if self.min_block < 1:
            raise ConfigError(f"masks.min_block = {self.min_block} is no area in patches; use 1 or more")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise ConfigError(f"masks.aspect = {self.aspect} is not a range of ratios; use two rising positive numbers")

    def pads(self, device: str) -> bool:
        """Whether lists are filled up on a kind of device, "cpu" or "cuda"."""
        return self.pad == "always" or (self.pad == "auto" and device == "cuda")


class BatchMasks(NamedTuple):
    """Masks of all global crops of a batch, and what the losses need of them.

    Attributes:
        masks: True where the student sees the mask token; grid rows and columns in row-major order.
        indices: flat positions of the masked patches in `masks`, increasing.
        weights: one over the number of masked patches of the same crop, for each masked patch.
        upperbound: a bound on M; for a whole batch one that depends on its shape alone.
    """

    masks: Bool[Tensor, "rows N"]
    indices: Int64[Tensor, " M"]
    weights: Float32[Tensor, " M"]
    upperbound: int


_DEVIATIONS = (0, 1, 2, 4)


class Padding(NamedTuple):
    """To which length the list of masked patches of some crops is filled up.

    Attributes:
        step_rows: global crops of the whole step, over all processes.
        config: shares that the masks of that step were drawn by.
        counts: masked patches of each of the crops.
    """

    step_rows: int
    config: MaskConfig
    counts: tuple[int, ...]

    def length(self, patches: int) -> int:
        """The length: one for the crops of a whole step, one of five for a part of them.

        For a whole step it is the published bound. Which of the step's crops are masked is drawn, so a part of them
        may have many more masked patches than another, up to several times the mean: there it is the least that is
        enough of the mean, of one, two and four standard deviations above it, and of the most that can be. On average
        this is less than one deviation more than there is.

        Args:
            patches: of a crop.
        """
        edges, rows, masked = _edges(self.step_rows, self.config), len(self.counts), sum(self.counts)
        most_of = [int(patches * share) for share in edges[1:]]  # rising
        most = max(sum(most_of[max(len(most_of) - rows, 0) :]), masked)
        if rows >= self.step_rows:
            return most
        # Drawn without replacement out of the step's crops, of which some have no mask.
        mean = sum(most_of) / self.step_rows
        square = sum(one * one for one in most_of) / self.step_rows
        variance = rows * (square - mean * mean) * (self.step_rows - rows) / (self.step_rows - 1)
        lengths = (math.ceil(rows * mean + far * math.sqrt(variance)) for far in _DEVIATIONS)
        return next((length for length in lengths if masked <= length <= most), most)

    def fill(
        self, indices: Int64[Tensor, " M"], weights: Float32[Tensor, " M"], patches: int
    ) -> tuple[Int64[Tensor, " P"], Float32[Tensor, " P"]]:
        """The list and its weights at that length: what is filled in is patch 0 with weight 0."""
        missing = self.length(patches) - sum(self.counts)
        return F.pad(indices, (0, missing)), F.pad(weights, (0, missing))

    def some(self, rows: Sequence[int]) -> "Padding":
        """That of some of the crops."""
        return self._replace(counts=tuple(self.counts[row] for row in rows))


def max_block(grid: tuple[int, int]) -> int:
    """Largest area of one rectangle: the larger of half the grid's rows and half its columns, halves rounded down.

    For a square image this is what the official float expression `0.5 * img // patch * img // patch` comes to,
    which is not half of the grid where the grid is odd: 128 for 16 x 16, 98 for 14 x 14, but 666 for 37 x 37.

    Differs: defined for grids that are not square, and the same for a grid and its transpose.
    """
    height, width = grid
    return max(height // 2 * width, height * (width // 2))


def block_mask(
    grid: tuple[int, int], target: int, rng: np.random.Generator, config: MaskConfig | None = None
) -> Bool[np.ndarray, "h w"]:
    """Mask of random rectangles that covers `target` patches or a few less, never more.

    Args:
        grid: height and width in patches.
        target: patches to cover.
        rng: source of the random numbers.
        config: limits of the rectangles.

    Returns:
        True where a patch is masked.

    Source: BEiT (Bao et al. 2021), algorithm 1; official `data/masking.py`.
    """
    config = config or MaskConfig()
    mask = np.zeros(grid, dtype=bool)
    largest, remaining = max_block(grid), target
    while remaining > 0:
        covered = _add_block(mask, min(remaining, largest), remaining, rng, config)
        if covered == 0:
            break
        remaining -= covered
    return mask


def _add_block(mask: np.ndarray, largest: int, remaining: int, rng: np.random.Generator, config: MaskConfig) -> int:
    """Cover one random rectangle of `mask` in place; the number of newly covered patches, 0 when no draw fitted."""
    height, width = mask.shape
    log_low, log_high = math.log(config.aspect[0]), math.log(config.aspect[1])
    for _ in range(TRIES_PER_BLOCK):
        # Near the end `largest` is less than `min_block`, and the range is then read backwards, as published.
        area = config.min_block + (largest - config.min_block) * rng.random()
        aspect = math.exp(log_low + (log_high - log_low) * rng.random())
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows >= height or columns >= width:
            continue
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        block = mask[top : top + rows, left : left + columns]
        covered = rows * columns - int(np.count_nonzero(block))
        if 0 < covered <= remaining:
            block[:] = True
            return covered
    return 0


def batch_masks(rows: int, grid: tuple[int, int], config: MaskConfig, rng: np.random.Generator) -> BatchMasks:
    """Masks of the `rows` global crops of a batch, all from one generator.

    Args:
        rows: global crops in the batch, over all images and views.
        grid: height and width of a global crop in patches.
        config: shares and limits.
        rng: source of the random numbers; the same state gives the same masks.

    Source: official `data/collate.py`.
    """
    patches, edges = grid[0] * grid[1], _edges(rows, config)
    masks = draw_masks(mask_shares(rows, config, rng), grid, config, itertools.repeat(rng))
    return masks._replace(upperbound=int(sum(int(patches * share) for share in edges[1:])))


def mask_shares(rows: int, config: MaskConfig, rng: np.random.Generator) -> Float64[np.ndarray, " rows"]:
    """Share of each global crop of a batch that is to be masked, 0 for the crops without a mask.

    The range of `config.ratio` is cut in as many equal parts as there are masked crops, and each masked crop draws
    its share from its own part, in shuffled order.

    Args:
        rows: global crops in the batch, over all images, views and processes.
        config: shares.
        rng: source of the random numbers.
    """
    edges, shares = _edges(rows, config), np.zeros(rows)
    masked = len(edges) - 1
    shares[rng.permutation(rows)[:masked]] = edges[:-1] + np.diff(edges) * rng.random(masked)
    return shares


def draw_masks(
    shares: Float64[np.ndarray, " rows"],
    grid: tuple[int, int],
    config: MaskConfig,
    rngs: Iterable[np.random.Generator],
) -> BatchMasks:
    """Masks of some crops, whose shares have been drawn for the whole batch.

    Args:
        shares: of the patches to be masked, for each crop, from `mask_shares`.
        grid: height and width of a global crop in patches.
        config: limits of the rectangles.
        rngs: source of the random numbers of each crop.

    Returns:
        The masks; `upperbound` is the number of patches asked for.
    """
    patches = grid[0] * grid[1]
    targets = (patches * shares).astype(int)
    masks = np.zeros((len(shares), patches), dtype=bool)
    for row, (target, rng) in enumerate(zip(targets.tolist(), rngs, strict=False)):
        if target:
            masks[row] = block_mask(grid, target, rng, config).reshape(-1)
    counts = masks.sum(axis=1)
    weights = np.repeat(1.0 / np.maximum(counts, 1), counts)
    return BatchMasks(
        masks=torch.from_numpy(masks),
        indices=torch.from_numpy(np.flatnonzero(masks)),
        weights=torch.from_numpy(weights.astype(np.float32)),
        upperbound=int(targets.sum()),
    )


def _edges(rows: int, config: MaskConfig) -> Float64[np.ndarray, " edges"]:
    """Borders of the parts that the range of shares is cut in, one part for each masked crop."""
    return np.linspace(config.ratio[0], config.ratio[1], int(rows * config.probability) + 1)
