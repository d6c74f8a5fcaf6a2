# SPDX-License-Identifier: Apache-2.0
import torch

from opendino.layers.packing import pack, unpack


def test_tokens_lie_group_by_group_image_by_image():
    first = torch.arange(12.0).reshape(2, 3, 2)
    second = torch.arange(12.0, 16.0).reshape(1, 2, 2)
    packed, groups = pack([first, second])
    assert groups == ((2, 3), (1, 2))
    assert packed.flatten().tolist() == list(range(16))


def test_unpacking_gives_the_groups_back_without_copies():
    xs = [torch.randn(2, 3, 4), torch.randn(5, 1, 4)]
    packed, groups = pack(xs)
    parts = unpack(packed, groups)
    assert all(torch.equal(x, part) for x, part in zip(xs, parts, strict=True))
    packed.zero_()
    assert all(not part.any() for part in parts)
