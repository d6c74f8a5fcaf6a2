# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours by blocked matrix products, on any device, without ever holding N x N numbers.

Candidates are found in bfloat16 where the processor is fast at it, and compared again in float32. Finding the best of
a long row costs more than the product itself, so a row is first reduced to the maxima of short groups: the k best of
it lie in the k groups of largest maximum. Read next: `_graph.py`; above a million rows on a CPU, `_faiss.py`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from opendino.curate._features import Matrix
from opendino.errors import ConfigError
from opendino.precision import full_float32

Precision = Literal["auto", "fp32", "bf16"]

GROUP = 32
_SPARE = 16  # candidates beyond the margin, for small k
_RESCORED_AT_ONCE = 64 << 20  # bytes


@dataclass(frozen=True)
class SearchConfig:
    """How neighbours are found.

    Attributes:
        engine: "exact", or faiss's "ivf" or "hnsw", whose recall is measured on a sample and logged.
        precision: of the candidates; "auto" is bf16 where the device multiplies it fast. Results are float32.
        margin: candidates for each neighbour wanted, so that rounding loses none.
        memory_mb: of one block of similarities.
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
    queries: Float32[Tensor, "q D"], bank: Matrix, k: int, config: SearchConfig = SearchConfig()
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The k rows of the bank with the largest dot product, largest first, ties by the smaller row.

    Args:
        queries: on the CPU.
        bank: read in blocks that keep to `config.memory_mb`; their size changes nothing but the last bits.
        k: neighbours; at most the size of the bank.
        config: how.

    Returns:
        Similarities and rows, on the CPU.

    Raises:
        ConfigError: k is out of range.
    """
    if not 1 <= k <= len(bank):
        raise ConfigError(f"k = {k}: the bank has {len(bank)} rows; give 1 to {len(bank)}")
    device = device_of(config.device)
    dtype = fast_dtype(config.precision, device)
    wanted = k if dtype == torch.float32 else min(math.ceil(k * config.margin) + _SPARE, len(bank))
    with full_float32():
        rough, rows = _candidates(queries.to(device), bank, wanted, dtype, block_rows(len(queries), config, dtype))
        if dtype == torch.float32:
            return _ordered(rough.cpu(), rows.cpu(), k)
        return _ordered(rescore(queries, bank, rows.cpu()), rows.cpu(), k)


def block_rows(queries: int, config: SearchConfig, dtype: torch.dtype) -> int:
    """Rows of the bank at once, a multiple of the group."""
    width = 2 if dtype == torch.bfloat16 else 4
    rows = (config.memory_mb << 20) // (max(queries, 1) * width)
    return max(rows // GROUP * GROUP, GROUP)


def _candidates(
    queries: Float32[Tensor, "q D"], bank: Matrix, wanted: int, dtype: torch.dtype, rows: int
) -> tuple[Float[Tensor, "q c"], Int64[Tensor, "q c"]]:
    """The best rows of the bank by products in a number format, in no order."""
    short = queries.to(dtype)
    values = torch.empty(len(queries), 0, dtype=dtype, device=queries.device)
    places = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    # One buffer for all blocks: fresh memory of this size costs more than what is written into it.
    scores = torch.empty(len(queries) * min(rows, len(bank)), dtype=dtype, device=queries.device)
    for start in range(0, len(bank), rows):
        part = bank.short(start, min(start + rows, len(bank)), dtype).to(queries.device)
        products = scores[: len(queries) * len(part)].view(len(queries), len(part))
        top, where = best_of(torch.mm(short, part.T, out=products), wanted)
        values, places = torch.cat([values, top], dim=1), torch.cat([places, where + start], dim=1)
        if values.shape[1] > wanted:
            values, kept = values.topk(wanted, dim=1, sorted=False)
            places = places.gather(1, kept)
    return values, places


def best_of(
    scores: Float[Tensor, "q n"], k: int, group: int = GROUP
) -> tuple[Float[Tensor, "q k2"], Int64[Tensor, "q k2"]]:
    """The k largest of each row and their columns, in no order; `topk`, several times faster on long rows.

    A group that holds one of the k largest has a maximum among the k largest maxima, or equal to the last of them.

    Args:
        scores: any floats.
        k: how many; at most all of them are given.
        group: columns that are looked at as one.
    """
    n = scores.shape[1]
    groups = n // group
    if groups <= k:
        return scores.topk(min(k, n), dim=1, sorted=False)
    # Column c is in group c % groups: the maximum over rows of a matrix, which the processor does in whole vectors.
    grouped = scores[:, : groups * group].unflatten(1, (group, groups))
    best = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices[:, None, :]
    inside = grouped.gather(2, best.expand(-1, group, -1)).flatten(1)
    columns = (best + groups * torch.arange(group, device=best.device)[:, None]).flatten(1)
    if groups * group < n:
        rest = torch.arange(groups * group, n, device=best.device).expand(len(scores), -1)
        inside, columns = torch.cat([inside, scores[:, groups * group :]], dim=1), torch.cat([columns, rest], dim=1)
    values, kept = inside.topk(k, dim=1, sorted=False)
    return values, columns.gather(1, kept)


def rescore(queries: Float32[Tensor, "q D"], bank: Matrix, rows: Int64[Tensor, "q c"]) -> Float32[Tensor, "q c"]:
    """Dot products of each query with rows of the bank, float32."""
    out = torch.empty(rows.shape, dtype=torch.float32)
    step = max(_RESCORED_AT_ONCE // (4 * bank.dim * max(rows.shape[1], 1)), 1)
    for start in range(0, len(queries), step):
        part = rows[start : start + step]
        found = bank.take(part.flatten().numpy()).view(*part.shape, bank.dim)
        out[start : start + step] = torch.bmm(found, queries[start : start + step, :, None])[:, :, 0]
    return out


def pairs(
    queries: Float32[Tensor, "q D"], bank: Matrix, first: Int64[Tensor, " p"], second: Int64[Tensor, " p"]
) -> Float32[Tensor, " p"]:
    """Dot products of single pairs, float32, each summed in the same order wherever it stands."""
    out = torch.empty(len(first), dtype=torch.float32)
    step = max(_RESCORED_AT_ONCE // (8 * bank.dim), 1)
    for start in range(0, len(first), step):
        rows = slice(start, start + step)
        out[rows] = (queries[first[rows]] * bank.take(second[rows].numpy())).sum(dim=1)
    return out


def _ordered(
    values: Float[Tensor, "q c"], rows: Int64[Tensor, "q c"], k: int
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The first k by value, then by row."""
    rows, order = rows.sort(dim=1)
    values, by_value = values.float().gather(1, order).sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), rows.gather(1, by_value)[:, :k].contiguous()


def recall(found: Int64[Tensor, "q k"], truth: Int64[Tensor, "q k"]) -> float:
    """Part of the true neighbours that were found."""
    return float((truth[:, :, None] == found[:, None, :]).any(dim=2).float().mean())
