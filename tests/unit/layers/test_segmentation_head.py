# SPDX-License-Identifier: Apache-2.0
import torch

from opendino.layers.segmentation_head import SegmentationHead


def test_is_a_linear_map_of_standardised_patches():
    head = SegmentationHead(6, 4)
    maps = [torch.randn(3, 3, 5, 5) + 2, torch.randn(3, 3, 5, 5)]
    x = torch.cat(maps, 1)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True).add(1e-5).sqrt()
    wanted = torch.einsum("kd,bdhw->bkhw", head.conv_seg.weight[..., 0, 0], (x - mean) / std)
    torch.testing.assert_close(head(maps), wanted, rtol=0, atol=1e-5)


def test_names_and_numbers_of_the_published_heads():
    """Batch norm 2 D and 1x1 convolution 150 (D + 1); D = 384 and 4 x 384 for ViT-S."""
    for width in (384, 4 * 384):
        head = SegmentationHead(width, 150)
        assert sum(p.numel() for p in head.parameters()) == 2 * width + 150 * (width + 1)
    assert set(head.state_dict()) == {
        "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
        "conv_seg.weight", "conv_seg.bias",
    }  # fmt: skip
