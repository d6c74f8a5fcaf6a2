# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from opendino.errors import ConfigError, DataError
from opendino.neighbours import approximate
from opendino.neighbours.exact import SearchConfig, nearest, recall
from opendino.neighbours.matrix import InMemory

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of faiss


def bank():
    return torch.nn.functional.normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.mark.parametrize("engine", ["ivf", "hnsw"])
def test_the_recall_is_high_and_told(engine, caplog):
    pytest.importorskip("faiss", reason="faiss is an extra")
    rows = bank()
    with caplog.at_level(logging.INFO, logger="opendino"):
        values, found = approximate.find(rows[:50], InMemory(rows), 8, SearchConfig(engine, device="cpu"))
    truth_values, truth = nearest(rows[:50], InMemory(rows), 8, SearchConfig(device="cpu"))
    assert recall(found, truth) > 0.8
    assert "recall 0." in caplog.text or "recall 1." in caplog.text
    assert (found[:, 0] == torch.arange(50)).all()
    torch.testing.assert_close(values[:, 0], truth_values[:, 0])


def test_an_index_on_the_disk_is_compared_again(tmp_path):
    pytest.importorskip("faiss", reason="faiss is an extra")
    rows, config = bank()[:300], SearchConfig(engine="hnsw", device="cpu")
    index = approximate.read(approximate.write(tmp_path / "g", InMemory(rows), config, 5), config)
    scores, found = approximate.among(index, rows[:20], InMemory(rows), 5)
    torch.testing.assert_close(scores, (rows[:20, None] * rows[found]).sum(-1))
    assert float((found == (rows[:20] @ rows.T).topk(5).indices).float().mean()) > 0.95


def test_what_an_index_does_not_find_is_missing():
    class Short:
        def search(self, queries, k):
            import numpy as np

            return None, np.array([[2, -1, 0]] * len(queries))

    rows = torch.eye(4)
    scores, found = approximate.among(Short(), rows[:1], InMemory(rows), 3)
    assert found.tolist() == [[0, 2, -1]]
    assert scores.tolist() == [[1, 0, -float("inf")]]


def test_a_broken_file(tmp_path):
    pytest.importorskip("faiss", reason="faiss is an extra")
    (tmp_path / "g").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read by faiss"):
        approximate.read(tmp_path / "g", SearchConfig(engine="hnsw"))


def test_without_faiss_the_error_says_what_to_install():
    try:
        import faiss  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"opendino\[faiss\]"):
            approximate.find(bank()[:1], InMemory(bank()), 1, SearchConfig("ivf"))
    else:
        pytest.skip("faiss is installed")
