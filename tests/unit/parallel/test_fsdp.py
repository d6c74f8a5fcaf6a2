# SPDX-License-Identifier: Apache-2.0
"""Alone in its group; two processes are in tests/integration/test_processes.py."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from opendino.layers.dino_head import DINOHead
from opendino.models.vision_transformer import VisionTransformer
from opendino.optim.param_groups import param_groups
from opendino.parallel import fsdp


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def networks():
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    return nn.ModuleDict({"backbone": backbone, "also_x": nn.ModuleDict({"head": DINOHead(16, 8, 8, 4)})})


def test_shares_compute_what_the_whole_computes(group):
    student, teacher, plain = networks(), networks(), networks()
    empty = fsdp.skeleton(teacher)
    optimizer = torch.optim.AdamW(param_groups(student), lr=0.1)
    fsdp.shard(student, teacher, optimizer, "fp32")
    assert all(isinstance(parameter, DTensor) for parameter in (*student.parameters(), *teacher.parameters()))
    # The optimizer has the parameters that have taken the place of those it was made with.
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in student.parameters()}
    images = torch.randn(3, 3, 8, 8)
    for both in (student, plain):
        tokens = both["backbone"].forward_features(images)["x_norm_clstoken"]
        both["also_x"]["head"](tokens).square().sum().backward()
    leading, wanted = (both["backbone"].leading_tokens(images, [0, 1]) for both in (teacher, plain))
    torch.testing.assert_close(leading, wanted)  # the last block is put together for it
    torch.testing.assert_close(teacher["backbone"](images), wanted[1][:, 0])
    chosen, wanted = (both["backbone"].chosen_tokens([images], [torch.tensor([3, 4])]) for both in (teacher, plain))
    torch.testing.assert_close(chosen, wanted)
    with torch.no_grad():  # as a frozen student's
        student["backbone"].chosen_tokens([images], [torch.tensor([0])])
    assert all(isinstance(parameter, DTensor) for parameter in student["backbone"].parameters()), "shared out again"
    for (name, shared), (_, whole) in zip(student.named_parameters(), plain.named_parameters(), strict=True):
        if whole.grad is not None:
            torch.testing.assert_close(fsdp.whole(shared.grad), whole.grad, msg=name)
    copied = fsdp.gather(teacher, empty)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    for (name, tensor), (_, wanted) in zip(copied.state_dict().items(), plain.state_dict().items(), strict=True):
        assert not isinstance(tensor, DTensor)
        assert tensor.equal(wanted), name


def test_half_precision_is_of_the_way_and_not_of_what_is_kept(group):
    student, teacher = networks(), networks()
    fsdp.shard(student, teacher, torch.optim.SGD(student.parameters()), "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        said = student["backbone"].forward_features(torch.randn(2, 3, 8, 8))["x_prenorm"]
    assert said.dtype == torch.float32, "the residual stream"
    said.sum().backward()
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert student["backbone"].blocks[0].attn.qkv.weight.grad.dtype == torch.float32
