# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors

from opendino.errors import ConfigError
from opendino.neighbours import exact
from opendino.neighbours.best import bytes_a_row
from opendino.neighbours.exact import SearchConfig, nearest, pairs, recall, self_join, tile_rows
from opendino.neighbours.matrix import InMemory


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_set_joined_with_itself_equals_its_rows_asked(bank, precision):
    config = SearchConfig(precision=precision, memory_mb=1, device="cpu")
    values, rows = self_join(InMemory(bank), 12, config)
    wanted, truth = nearest(bank, InMemory(bank), 12, config)
    torch.testing.assert_close(values, wanted, atol=2e-6, rtol=0)
    assert recall(rows, truth) > 0.9999
    assert (rows[:, 0] == torch.arange(len(bank))).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_budget_joins_in_stripes_with_the_same_result(bank, precision, monkeypatch):
    rows = F.normalize(torch.cat([bank, bank.flip(1) + 0.1, bank.roll(3, 1)]), dim=1)
    made = []

    class Noted(exact.Best):
        def __init__(self, rows, k, **named):
            made.append(rows * bytes_a_row(k))
            super().__init__(rows, k, **named)

    monkeypatch.setattr(exact, "Best", Noted)
    whole, small = (
        self_join(InMemory(rows), 20, SearchConfig(precision=precision, memory_mb=mb, margin=2.0, device="cpu"))
        for mb in (64, 1)
    )
    assert len(made) > 3  # one for the whole set, then stripes
    assert max(made[1:]) <= 1 << 20 < made[0]
    assert sum(made[1:]) == made[0]
    torch.testing.assert_close(small[0], whole[0], atol=1e-6, rtol=0)
    # Sums of another block may round otherwise, and so order equals.
    assert recall(small[1], whole[1]) > 0.9999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_above_a_floor_nothing_is_missing(bank, precision):
    config = SearchConfig(precision=precision, device="cpu")
    cosines = bank @ bank.T
    floor = 0.8
    values, rows = nearest(bank[:200], InMemory(bank), 400, config, floor=floor)
    assert int((values > floor).sum()) == int((cosines[:200] > floor).sum())
    assert ((values == -math.inf) == (rows == -1)).all()
    joined, _ = self_join(InMemory(bank), 400, config, floor=floor)
    torch.testing.assert_close(joined[:200].clamp(min=floor), values.clamp(min=floor), atol=2e-6, rtol=0)


@pytest.mark.parametrize("engine", [nearest, self_join])
def test_rows_that_are_all_alike(engine):
    bank = torch.nn.functional.normalize(torch.ones(700, 8), dim=1)
    found = engine(InMemory(bank), 5, SearchConfig(device="cpu")) if engine is self_join else engine(
        bank, InMemory(bank), 5, SearchConfig(device="cpu"))  # fmt: skip
    assert (found[0] > 0.9999).all()
    assert all(len(set(row)) == 5 for row in found[1].tolist())


def test_memory_bounds_a_block():
    config, cpu, cuda = SearchConfig(memory_mb=1), torch.device("cpu"), torch.device("cuda")
    assert tile_rows(2048, config, torch.bfloat16, cuda) * 2048 * 2 <= 1 << 20
    assert tile_rows(0, config, torch.float32, cpu) ** 2 * 4 <= 1 << 20
    assert tile_rows(10**9, config, torch.float32, cpu) >= 1


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
