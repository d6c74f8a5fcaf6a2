# SPDX-License-Identifier: Apache-2.0
"""faiss's approximate indices on the disk; built and compared again by `curate/_faiss.py` and `_search.py`."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from opendino.curate import _faiss
from opendino.curate._features import Matrix
from opendino.curate._search import SearchConfig, _ordered, rescore
from opendino.errors import DataError
from opendino.files import write_whole

_K = 10  # neighbours that the breadth of the search is made for
_CANDIDATES = 4  # for each neighbour wanted


def write(path: Path, bank: Matrix, config: SearchConfig) -> Path:
    """Build the index of a matrix and write it.

    Raises:
        ConfigError: faiss is not installed.
    """
    faiss = _faiss._library()
    index = _faiss._index(bank, config, min(_K, len(bank)))
    return write_whole(path, lambda place: faiss.write_index(index, str(place)), error=DataError)


def read(path: Path, config: SearchConfig) -> Any:  # noqa: ANN401  faiss has no types
    """The index in a file.

    Raises:
        ConfigError: faiss is not installed.
        DataError: the file cannot be read.
    """
    faiss = _faiss._library()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path}: cannot be read by faiss ({reason}); build the index again") from None
    if config.engine == "ivf":
        index.nprobe = min(config.nprobe, index.nlist)
    return index


def among(
    index: Any,  # noqa: ANN401
    queries: Float32[Tensor, "q D"],
    bank: Matrix,
    k: int,
) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The k best of what the index finds, compared again in float32."""
    wanted = min(_CANDIDATES * k, len(bank))
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(index.hnsw.efSearch, wanted)
    _, found = index.search(queries.numpy(), wanted)
    rows = torch.from_numpy(found)
    # A list that was too short gives -1; row 0 stands in, below everything.
    values = rescore(queries, bank, rows.clamp(min=0)).masked_fill(rows < 0, -2.0)
    return _ordered(values, rows.clamp(min=0), k)
