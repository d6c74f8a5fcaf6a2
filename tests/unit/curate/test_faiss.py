# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from opendino.curate import _faiss
from opendino.curate._features import InMemory
from opendino.curate._search import SearchConfig, recall
from opendino.curate._search import nearest as exact
from opendino.errors import ConfigError


def bank():
    return torch.nn.functional.normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.mark.parametrize("engine", ["ivf", "hnsw"])
def test_the_recall_is_high_and_told(engine, caplog):
    pytest.importorskip("faiss", reason="faiss is an extra")
    rows = bank()
    with caplog.at_level(logging.INFO, logger="opendino"):
        values, found = _faiss.nearest(rows[:50], InMemory(rows), 8, SearchConfig(engine, device="cpu"))
    truth_values, truth = exact(rows[:50], InMemory(rows), 8, SearchConfig(device="cpu"))
    assert recall(found, truth) > 0.8
    assert "recall 0." in caplog.text or "recall 1." in caplog.text
    assert (found[:, 0] == torch.arange(50)).all()
    torch.testing.assert_close(values[:, 0], truth_values[:, 0])


def test_faiss_is_an_extra():
    try:
        import faiss  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"opendino\[faiss\]"):
            _faiss.nearest(bank()[:1], InMemory(bank()), 1, SearchConfig("ivf"))
    else:
        pytest.skip("faiss is installed")
