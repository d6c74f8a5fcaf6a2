# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.curate._features import InMemory
from opendino.curate._search import SearchConfig
from opendino.errors import DataError
from opendino.search import _faiss

pytest.importorskip("faiss", reason="faiss is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_scores_are_compared_again(tmp_path):
    bank = InMemory(torch.nn.functional.normalize(torch.randn(300, 16), dim=1))
    config = SearchConfig(engine="hnsw")
    index = _faiss.read(_faiss.write(tmp_path / "g", bank, config), config)
    queries = bank.features[:20]
    scores, rows = _faiss.among(index, queries, bank, 5)
    torch.testing.assert_close(scores, (queries[:, None] * bank.features[rows]).sum(-1))
    wanted = (queries @ bank.features.T).topk(5).indices
    assert float((rows == wanted).float().mean()) > 0.95


def test_a_broken_file(tmp_path):
    (tmp_path / "g").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read by faiss"):
        _faiss.read(tmp_path / "g", SearchConfig(engine="hnsw"))
