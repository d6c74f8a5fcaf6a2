# SPDX-License-Identifier: Apache-2.0
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from opendino import distributed


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
    distributed.barrier()
    dist.destroy_process_group()


def test_two_processes_see_the_same_sums(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_one_of_two, args=(tmp_path / "store", results), nprocs=2)
        assert results[0] == (True, [1.0, 10.0], [3.0, 19.0], [2.0, 10.0])
        assert results[1] == (False, [2.0, 9.0], [3.0, 19.0], [2.0, 10.0])
