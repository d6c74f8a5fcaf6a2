# SPDX-License-Identifier: Apache-2.0
"""Approximate neighbours by faiss on the CPU, above a million rows; its candidates are compared again in float32.

The recall against the exact search is measured on a sample of rows, once for each index, and logged.
"""

import logging
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from opendino.curate._features import Matrix
from opendino.curate._search import SearchConfig, _ordered, recall, rescore
from opendino.curate._search import nearest as exact
from opendino.errors import ConfigError

_log = logging.getLogger(__name__)
_SAMPLE = 256
_BLOCK = 65536
_NEIGHBOURS = 32  # links of a node of HNSW


def nearest(
    queries: Float32[Tensor, "q D"], bank: Matrix, k: int, config: SearchConfig
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """As `_search.nearest`, but for the neighbours that the index does not find.

    Raises:
        ConfigError: faiss is not installed.
    """
    index = _index(bank, config, k)
    _, found = index.search(queries.numpy(), k)
    rows = torch.from_numpy(found)
    # A list that was too short gives -1; row 0 stands in, below everything.
    values = rescore(queries, bank, rows.clamp(min=0)).masked_fill(rows < 0, -2.0)
    return _ordered(values, rows.clamp(min=0), k)


@lru_cache(maxsize=1)
def _index(bank: Matrix, config: SearchConfig, k: int) -> Any:  # noqa: ANN401  faiss has no types
    faiss = _library()
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
    _, found = index.search(queries.numpy(), k)
    _log.info("faiss %s: recall %.4f of the %d nearest, on %d rows", config.engine,
              recall(torch.from_numpy(found), exact(queries, bank, k, config)[1]), k, len(queries))  # fmt: skip
    return index


def _library() -> Any:  # noqa: ANN401
    try:
        import faiss  # pyrefly: ignore[missing-import]  an extra
    except ImportError as error:
        raise ConfigError(
            f"search.engine: faiss cannot be imported ({error}); pip install 'opendino[faiss]', or search.engine=exact"
        ) from None
    return faiss
