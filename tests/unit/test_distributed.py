# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from opendino import distributed
from opendino.errors import ConfigError, DataError, OpendinoError


def test_alone_every_call_is_the_identity():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    for reduced in (distributed.all_reduce_sum(value), distributed.all_reduce_max(value)):
        assert torch.equal(reduced, value.detach())
        assert not reduced.requires_grad
        assert reduced.data_ptr() != value.data_ptr(), "the caller's tensor is never written to"
    distributed.barrier()


def _one_of_two(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    value = torch.tensor([1.0 + rank, 10.0 - rank])
    summed, largest = distributed.all_reduce_sum(value), distributed.all_reduce_max(value)
    results[rank] = (distributed.is_main(), value.tolist(), summed.tolist(), largest.tolist())
    with distributed.together():
        pass
    told = []
    for failing in ((1,), (0, 1)):
        try:
            with distributed.together():
                if rank in failing:
                    raise DataError(f"of process {rank}")
        except OpendinoError as error:
            told.append((type(error).__name__, str(error)))
    results[f"told {rank}"] = told
    own = torch.tensor([[1.0 + rank, 2.0]], requires_grad=True)
    rows = distributed.gather_rows(own)
    # Each process asks for something else of all rows: a row's gradient is the sum of what all ask.
    (rows * torch.tensor([[1.0, 1.0], [10.0, 100.0]]) * (1 + rank)).sum().backward()
    results[f"rows {rank}"] = (rows.tolist(), own.grad.tolist(), distributed.largest(rank, 5 - rank))
    distributed.barrier()
    dist.destroy_process_group()


def test_two_processes_see_the_same_sums(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_one_of_two, args=(tmp_path / "store", results), nprocs=2)
        assert results[0] == (True, [1.0, 10.0], [3.0, 19.0], [2.0, 10.0])
        assert results[1] == (False, [2.0, 9.0], [3.0, 19.0], [2.0, 10.0])
        # One process speaks for all, the others end in silence.
        first = [("Elsewhere", "process 1: of process 1"), ("DataError", "of process 0")]
        assert results["told 0"] == first
        assert results["told 1"] == [("DataError", "of process 1"), ("Elsewhere", "process 0: of process 0")]
        both = [[1.0, 2.0], [2.0, 2.0]]
        assert results["rows 0"] == (both, [[3.0, 3.0]], (1, 5))
        assert results["rows 1"] == (both, [[30.0, 300.0]], (1, 5))


def test_alone_an_error_is_the_own_and_nothing_is_joined(monkeypatch):
    with pytest.raises(DataError, match="mine"), distributed.together():
        raise DataError("mine")
    rows = torch.ones(2, 3)
    assert distributed.gather_rows(rows) is rows
    assert distributed.largest(3, 4) == (3, 4)
    with distributed.joined():
        assert not distributed.is_initialized()
    with distributed.joined(alone=True):
        assert distributed.is_initialized()
        assert (distributed.world_size(), distributed.is_main()) == (1, True)
    assert not distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(ConfigError, match="RANK, MASTER_ADDR, MASTER_PORT is not set; start all of them by torchrun"),
        distributed.joined(),
    ):
        pass
