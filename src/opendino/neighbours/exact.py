# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours by blocked matrix products, on any device, without ever holding N x N numbers.

Candidates are found in bfloat16 where the processor is fast at it, and compared again in float32. A set that is
joined with itself needs half the products: each serves both of its rows. Read next: `best.py`, which picks the
candidates; above a million rows on a CPU, `approximate.py`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from opendino.errors import ConfigError
from opendino.neighbours.best import Best, bytes_a_row
from opendino.neighbours.matrix import Matrix
from opendino.precision import full_float32

Precision = Literal["auto", "fp32", "bf16"]

_SPARE = 8  # candidates beyond the margin, for small k
_ROUNDING = 0.02  # products of unit rows in half precision are off by less
_TILE = {"cpu": 2048}  # rows of a square of scores; it stays in the cache, where selecting from it is nearly free
_LARGEST_TILE = 16384
_FEWEST_SCORES = 1 << 16  # of a tile: where queries are few, calling costs more than computing
_RESCORED_AT_ONCE = 2 << 20  # bytes
_QUERIES = 1024  # rescored together


@dataclass(frozen=True)
class SearchConfig:
    """How neighbours are found.

    Attributes:
        engine: "exact", or faiss's "ivf" or "hnsw", whose recall is measured on a sample and logged.
        precision: of the candidates; "auto" is bf16 where the device multiplies it fast. Results are float32.
        margin: candidates for each neighbour wanted, so that rounding loses none.
        memory_mb: beyond features and result: at most half of it for a block of similarities, and what is left for the
            candidates of a set that is joined with itself.
        hold_mb: of features that a process keeps in memory, in float32; larger sets are read again from the disk.
        device: "auto" takes a CUDA device where there is one.
        nprobe: lists that "ivf" looks into.
        ef: breadth of the search of "hnsw".
    """

    engine: Literal["exact", "ivf", "hnsw"] = "exact"
    precision: Precision = "auto"
    margin: float = 1.1
    memory_mb: int = 512
    hold_mb: int = 4096
    device: str = "auto"
    nprobe: int = 32
    ef: int = 128

    def __post_init__(self) -> None:
        if self.margin < 1 or self.memory_mb < 1 or self.hold_mb < 0:
            raise ConfigError("search.margin and search.memory_mb: give 1 or more; search.hold_mb: 0 or more")


def of_result(config: SearchConfig) -> dict[str, Any]:
    """Settings that the neighbours may depend on."""
    return {name: getattr(config, name) for name in ("engine", "precision", "margin", "nprobe", "ef")}


def device_of(name: str) -> torch.device:
    """The device that a setting names."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def fast_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Number format of the candidates' products."""
    if precision == "auto":
        cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = device.type == "cuda" or bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


@torch.no_grad()
def nearest(
    queries: Float32[Tensor, "q D"],
    bank: Matrix,
    k: int,
    config: SearchConfig = SearchConfig(),
    *,
    floor: float = -math.inf,
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The k rows of the bank with the largest dot product, largest first, ties by the smaller row.

    Args:
        queries: on the CPU; of length 1 where there is a floor.
        bank: read in blocks that keep to `config.memory_mb`; their size changes nothing but the last bits.
        k: neighbours; at most the size of the bank.
        config: how.
        floor: neighbours up to this are of no interest, which is faster: they may be missing.

    Returns:
        Similarities and rows, on the CPU; -inf and -1 for what is missing.

    Raises:
        ConfigError: k is out of range.
    """
    device, dtype, wanted = _plan(k, bank, config)
    tile = tile_rows(len(queries), config, dtype, device)
    with full_float32():
        best = Best(len(queries), wanted, floor=_below(floor, dtype), device=device)
        short = queries.to(device, dtype)
        # One buffer for all blocks: fresh memory of this size costs more than what is written into it.
        scores = torch.empty(len(queries) * min(tile, len(bank)), dtype=dtype, device=device)
        for start in range(0, len(bank), tile):
            part = bank.short(start, min(start + tile, len(bank)), dtype).to(device)
            best.offer(_products(short, part, scores), start)
        return _finish(queries, bank, k, best.result(), dtype)


@torch.no_grad()
def self_join(
    bank: Matrix, k: int, config: SearchConfig = SearchConfig(), *, floor: float = -math.inf
) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """As `nearest` for all rows of the bank, themselves counted, by half the products.

    Candidates are kept for as many rows as `config.memory_mb` has room for, 2 kB a row for 65 neighbours. Where it is
    less than all rows, the set is joined in stripes, and only products within a stripe serve both of their rows: with
    room for half of the rows three quarters of all products are made, with room for few nearly all.

    Args:
        bank: best held in memory: each row is read once for every 2,048 rows.
        k: neighbours, the row itself counted; at most the size of the bank.
        config: how.
        floor: as for `nearest`.

    Raises:
        ConfigError: k is out of range.
    """
    device, dtype, wanted = _plan(k, bank, config)
    n, tile = len(bank), tile_rows(0, config, dtype, device)
    room = (config.memory_mb << 20) - tile**2 * dtype.itemsize
    kept = max(room // bytes_a_row(wanted) // 32 * 32, 32)
    tile = min(tile, kept)
    stripe = kept // tile * tile
    scores = torch.empty(min(tile, n) ** 2, dtype=dtype, device=device)
    values, rows = torch.empty(n, k), torch.empty(n, k, dtype=torch.int64)
    with full_float32():
        for first in range(0, n, stripe):
            last = min(first + stripe, n)
            best = Best(last - first, wanted, floor=_below(floor, dtype), device=device)
            _join(bank, best, (first, last), tile, scores)
            for at in range(first, last, _QUERIES):
                own = slice(at, min(at + _QUERIES, last))
                found = best.result(slice(own.start - first, own.stop - first))
                values[own], rows[own] = _finish(bank.block(own.start, own.stop), bank, k, found, dtype)
    return values, rows


def _join(bank: Matrix, best: Best, stripe: tuple[int, int], tile: int, scores: Float[Tensor, " _"]) -> None:
    """Offer the rows of a stripe all rows of the bank; what lies within the stripe is multiplied once."""
    (first, last), n, dtype = stripe, len(bank), scores.dtype
    for upper in range(first, last, tile):
        rows = bank.short(upper, min(upper + tile, last), dtype).to(scores.device)
        for lower in (*range(0, first, tile), *range(upper, n, tile)):
            others = rows if lower == upper else bank.short(lower, min(lower + tile, n), dtype).to(scores.device)
            products = _products(rows, others, scores)
            best.offer(products, lower, upper - first)
            if upper < lower < last:
                best.offer(products.T, upper, lower - first)


def tile_rows(queries: int, config: SearchConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of the bank at once.

    Args:
        queries: that they are compared with; 0 for as many as rows of the bank.
        config: half of `memory_mb` bounds the block.
        dtype: of the block.
        device: that computes.
    """
    room = (config.memory_mb << 19) // dtype.itemsize
    rows = room // queries if queries else math.isqrt(room)
    tile = _TILE.get(device.type, _LARGEST_TILE)
    return max(min(rows, max(tile, _FEWEST_SCORES // queries) if queries else tile) // 32 * 32, 32)


def _plan(k: int, bank: Matrix, config: SearchConfig) -> tuple[torch.device, torch.dtype, int]:
    """Device, number format and number of the candidates."""
    if not 1 <= k <= len(bank):
        raise ConfigError(f"k = {k}: the bank has {len(bank)} rows; give 1 to {len(bank)}")
    device = device_of(config.device)
    dtype = fast_dtype(config.precision, device)
    return device, dtype, k if dtype == torch.float32 else min(math.ceil(k * config.margin) + _SPARE, len(bank))


def _below(floor: float, dtype: torch.dtype) -> float:
    return floor if dtype == torch.float32 else floor - _ROUNDING


def _products(
    rows: Float[Tensor, "n D"], others: Float[Tensor, "m D"], room: Float[Tensor, " _"]
) -> Float[Tensor, "n m"]:
    return torch.mm(rows, others.T, out=room[: len(rows) * len(others)].view(len(rows), len(others)))


def _finish(
    queries: Float32[Tensor, "q D"],
    bank: Matrix,
    k: int,
    found: tuple[Float32[Tensor, "q c"], Int64[Tensor, "q c"]],
    dtype: torch.dtype,
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The best of the candidates, compared again where they were found in half precision."""
    rough, rows = found[0].cpu(), found[1].cpu()
    return ordered(rough if dtype == torch.float32 else rescore(queries, bank, rows), rows, k)


def rescore(queries: Float32[Tensor, "q D"], bank: Matrix, rows: Int64[Tensor, "q c"]) -> Float32[Tensor, "q c"]:
    """Dot products of each query with rows of the bank, float32; -inf for row -1."""
    own, column = (rows >= 0).nonzero(as_tuple=True)
    if len(own) < rows.numel():
        out = torch.full(rows.shape, -math.inf)
        out[own, column] = pairs(queries, bank, own, rows[own, column])
        return out
    out = torch.empty(rows.shape, dtype=torch.float32)
    step = max(_RESCORED_AT_ONCE // (4 * bank.dim * max(rows.shape[1], 1)), 1)
    for start in range(0, len(queries), step):
        part = rows[start : start + step]
        found = bank.take(part.flatten().numpy()).view(*part.shape, bank.dim)
        # A product with one vector each is slower in torch than multiplying and adding up.
        torch.sum(found.mul_(queries[start : start + step, None]), dim=2, out=out[start : start + step])
    return out


def pairs(
    queries: Float32[Tensor, "q D"], bank: Matrix, first: Int64[Tensor, " p"], second: Int64[Tensor, " p"]
) -> Float32[Tensor, " p"]:
    """Dot products of single pairs, float32, each summed in the same order wherever it stands."""
    out = torch.empty(len(first), dtype=torch.float32)
    step = max(_RESCORED_AT_ONCE // (4 * bank.dim), 1)
    for start in range(0, len(first), step):
        rows = slice(start, start + step)
        out[rows] = (queries[first[rows]] * bank.take(second[rows].numpy())).sum(dim=1)
    return out


def ordered(
    values: Float[Tensor, "q c"], rows: Int64[Tensor, "q c"], k: int
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The first k by value, then by row."""
    rows, order = rows.sort(dim=1)
    values, by_value = values.float().gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), rows.gather(1, by_value)[:, :k].contiguous()


def recall(found: Int64[Tensor, "q k"], truth: Int64[Tensor, "q k"]) -> float:
    """Part of the true neighbours that were found."""
    return float((truth[:, :, None] == found[:, None, :]).any(dim=2).float().mean())
