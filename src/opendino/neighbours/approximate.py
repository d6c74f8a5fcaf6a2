# SPDX-License-Identifier: Apache-2.0
"""Approximate neighbours by faiss on the CPU, above a million rows; its candidates are compared again in float32.

The recall against the exact search is measured on a sample of rows, once for each index, and logged. `find` takes
the engine that the settings name.
"""

import logging
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from opendino.errors import ConfigError, DataError
from opendino.files import write_whole
from opendino.neighbours.exact import SearchConfig, nearest, ordered, recall, rescore
from opendino.neighbours.matrix import Matrix

_log = logging.getLogger(__name__)
_SAMPLE = 256
_BLOCK = 65536
_NEIGHBOURS = 32  # links of a node of HNSW
_CANDIDATES = 4  # of an index on the disk, for each neighbour wanted


def find(
    queries: Float32[Tensor, "q D"], bank: Matrix, k: int, config: SearchConfig, *, floor: float = -math.inf
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """Nearest neighbours by the engine that `config` names; see `exact.nearest`.

    Raises:
        ConfigError: k is out of range, or faiss is wanted and not installed.
    """
    if config.engine == "exact":
        return nearest(queries, bank, k, config, floor=floor)
    return among(_built(bank, config, k), queries, bank, k, k)


def among(
    index: Any,  # noqa: ANN401  faiss has no types
    queries: Float32[Tensor, "q D"],
    bank: Matrix,
    k: int,
    candidates: int = 0,
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The k best of what an index finds, compared again in float32; -inf and -1 where it finds fewer.

    Args:
        index: of faiss.
        queries: of length 1.
        bank: the rows of the index.
        k: neighbours.
        candidates: that the index is asked for; 0 for four times as many.
    """
    wanted = min(candidates or _CANDIDATES * k, len(bank))
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(index.hnsw.efSearch, wanted)
    rows = torch.from_numpy(index.search(queries.numpy(), wanted)[1])
    return ordered(rescore(queries, bank, rows), rows, k)


def write(path: Path, bank: Matrix, config: SearchConfig, k: int) -> Path:
    """Build the index of a matrix and write it.

    Args:
        path: file.
        bank: all rows.
        config: which index.
        k: neighbours that the breadth of the search is made for.

    Raises:
        ConfigError: faiss is not installed.
    """
    faiss, index = library(), _built(bank, config, min(k, len(bank)))
    return write_whole(path, lambda place: faiss.write_index(index, str(place)), error=DataError)


def read(path: Path, config: SearchConfig) -> Any:  # noqa: ANN401
    """The index in a file.

    Raises:
        ConfigError: faiss is not installed.
        DataError: the file cannot be read.
    """
    faiss = library()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path}: cannot be read by faiss ({reason}); build the index again") from None
    if config.engine == "ivf":
        index.nprobe = min(config.nprobe, index.nlist)
    return index


@lru_cache(maxsize=1)
def _built(bank: Matrix, config: SearchConfig, k: int) -> Any:  # noqa: ANN401
    faiss = library()
    n = len(bank)
    if config.engine == "ivf":
        lists = max(min(int(4 * n**0.5), n // 39), 1)
        flat = faiss.IndexFlatIP(bank.dim)
        index = faiss.IndexIVFFlat(flat, bank.dim, lists, faiss.METRIC_INNER_PRODUCT)
        sample = np.unique(np.linspace(0, n - 1, min(n, lists * 64)).astype(np.int64))
        index.train(bank.take(sample).numpy())
        index.nprobe = min(config.nprobe, lists)
    else:
        index = faiss.IndexHNSWFlat(bank.dim, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, max(config.ef, k)
    for start in range(0, n, _BLOCK):
        index.add(bank.block(start, min(start + _BLOCK, n)).numpy())
    queries = bank.take(np.unique(np.linspace(0, n - 1, min(_SAMPLE, n)).astype(np.int64)))
    found = torch.from_numpy(index.search(queries.numpy(), k)[1])
    _log.info("faiss %s: recall %.4f of the %d nearest, on %d rows", config.engine,
              recall(found, nearest(queries, bank, k, config)[1]), k, len(queries))  # fmt: skip
    return index


def library() -> Any:  # noqa: ANN401
    """The package faiss.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        import faiss  # pyrefly: ignore[missing-import]  an extra
    except ImportError as error:
        raise ConfigError(
            f"search.engine: faiss cannot be imported ({error}); pip install 'opendino[faiss]', or search.engine=exact"
        ) from None
    return faiss
