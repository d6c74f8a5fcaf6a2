# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from opendino.curate._features import InMemory
from opendino.curate._search import SearchConfig, best_of, block_rows, nearest, pairs, recall
from opendino.errors import ConfigError


@pytest.fixture(scope="module")
def bank():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 24, generator=generator)
    rows = centres[torch.randint(0, 30, (1500,), generator=generator)]
    return F.normalize(rows + 0.5 * torch.randn(1500, 24, generator=generator), dim=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("memory_mb", [1, 64])
def test_neighbours_are_those_of_scikit_learn(bank, precision, memory_mb):
    queries = bank[:300]
    config = SearchConfig(precision=precision, margin=2.0, memory_mb=memory_mb, device="cpu")
    values, rows = nearest(queries, InMemory(bank), 10, config)
    distance, oracle = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(bank).kneighbors(queries)
    torch.testing.assert_close(values, 1 - torch.from_numpy(distance).float() ** 2 / 2, atol=2e-6, rtol=0)
    assert recall(rows, torch.from_numpy(oracle)) > 0.999


def test_blocks_do_not_change_the_result(bank):
    found = [nearest(bank[:900], InMemory(bank), 7, SearchConfig(memory_mb=mb, device="cpu")) for mb in (1, 64)]
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-6, rtol=0)
    assert recall(found[0][1], found[1][1]) > 0.9999


def test_ties_go_to_the_smaller_row():
    bank = torch.eye(4).repeat(3, 1)
    values, rows = nearest(torch.eye(4)[1:2], InMemory(bank), 4, SearchConfig(device="cpu"))
    assert rows.tolist()[0][:3] == [1, 5, 9]
    assert values.tolist()[0] == [1, 1, 1, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 12), st.integers(2, 16), st.integers(0, 99))
def test_the_best_of_a_row_equal_topk(n, k, group, seed):
    scores = torch.randint(0, 50, (3, n), generator=torch.Generator().manual_seed(seed)).float()
    values, columns = best_of(scores, k, group)
    assert torch.equal(values.sort(dim=1).values, scores.topk(min(k, n), dim=1).values.sort(dim=1).values)
    assert torch.equal(scores.gather(1, columns), values)
    assert all(len(set(row)) == len(row) for row in columns.tolist())


def test_memory_bounds_a_block():
    config = SearchConfig(memory_mb=1)
    assert block_rows(2048, config, torch.bfloat16) * 2048 * 2 <= 1 << 20
    assert block_rows(10**9, config, torch.float32) >= 1


def test_pairs_are_dot_products(bank):
    first, second = torch.tensor([0, 3, 3]), torch.tensor([5, 1499, 0])
    torch.testing.assert_close(
        pairs(bank, InMemory(bank), first, second), (bank[first] * bank[second]).sum(1), atol=1e-6, rtol=0
    )


def test_too_many_neighbours(bank):
    with pytest.raises(ConfigError, match="give 1 to 1500"):
        nearest(bank[:1], InMemory(bank), 1501)
    with pytest.raises(ConfigError, match="1 or more"):
        SearchConfig(memory_mb=0)
