# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opendino.errors import ConversionError, ModelError
from opendino.eval import _dense
from opendino.layers.segmentation_head import SegmentationHead
from opendino.models.vision_transformer import VisionTransformer


def test_padding_goes_around_the_centre_and_nothing_is_cut():
    assert _dense.padding(28, 28, 14) == (0, 0, 0, 0)
    assert _dense.padding(512, 500, 14) == (2, 2, 3, 3)  # 512 -> 518, 500 -> 504
    assert _dense.padding(13, 11, 14) == (1, 2, 0, 1)
    for side in range(1, 60):
        left, right, _, _ = _dense.padding(14, side, 14)
        assert (side + left + right) % 14 == 0
        assert 0 <= right - left <= 1


def test_maps_are_the_features_of_the_padded_image():
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=3, num_heads=1).eval()
    x = torch.randn(2, 3, 13, 24)
    maps = _dense.feature_maps(backbone, x, [0, 2])
    padded = F.pad(x, (0, 0, 1, 2))
    wanted = backbone.get_intermediate_layers(padded, [0, 2], reshape=True, return_class_token=True)
    for (patches, cls), (wanted_patches, wanted_cls) in zip(maps, wanted, strict=True):
        torch.testing.assert_close(patches, wanted_patches)
        torch.testing.assert_close(cls, wanted_cls)
        assert not patches.requires_grad
    with pytest.raises(ModelError, match="features of block 4 are wanted"):
        _dense.feature_maps(backbone, x, [3])


def test_values_come_back_to_their_pixels():
    # A ramp over the padded image: its values are the pixels' own columns, wherever padding was.
    height, width, patch = 20, 37, 8
    left, right, top, bottom = _dense.padding(height, width, patch)
    columns = torch.arange(left + width + right).float() - left
    grid = F.avg_pool2d(columns.expand(1, 1, top + height + bottom, -1), patch)
    found = _dense.to_pixels(grid, height, width, patch)
    assert found.shape == (1, 1, height, width)
    inner = slice(patch, width - patch)
    torch.testing.assert_close(found[0, 0, 3, inner], columns[left:][:width][inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "window", "stride"), [((30, 41), 16, 11), ((10, 12), 16, 11), ((16, 32), 16, 16)])
def test_windows_of_a_pointwise_prediction_change_nothing(size, window, stride):
    x, seen = torch.randn(2, 3, *size), []

    def predict(part):
        seen.append(part.shape[2:])
        return part[:, :1] * 2

    torch.testing.assert_close(_dense.slide(predict, x, window, stride), x[:, :1] * 2)
    assert {tuple(s) for s in seen} == {(min(size[0], window), min(size[1], window))}


def test_overlaps_are_averaged():
    x = torch.arange(6.0).expand(1, 1, 1, 6)
    calls = iter([0.0, 3.0])
    found = _dense.slide(lambda part: torch.full_like(part, next(calls)), x, 4, 2)
    assert found.flatten().tolist() == [0, 0, 1.5, 1.5, 3, 3]


def test_published_head_files_are_strict(tmp_path):
    torch.manual_seed(1)
    theirs, ours = SegmentationHead(8, 5), SegmentationHead(8, 5)
    named = {f"decode_head.{name}": value for name, value in theirs.state_dict().items()}
    file = tmp_path / "head.pth"
    torch.save({"meta": {"CLASSES": ("a", "b")}, "state_dict": named}, file)
    _dense.load_head(ours, file)
    assert torch.equal(ours.conv_seg.weight, theirs.conv_seg.weight)
    with pytest.raises(
        ConversionError, match=r"conv_seg.weight has shape \(5, 8, 1, 1\), and \(6, 8, 1, 1\) is wanted"
    ):
        _dense.load_head(SegmentationHead(8, 6), file)
    torch.save({**named, "decode_head.extra": torch.zeros(1)}, file)
    with pytest.raises(ConversionError, match=r"left over .'extra'"):
        _dense.load_head(ours, file)
    torch.save({"decode_head.bn.weight": torch.ones(8)}, file)
    with pytest.raises(ConversionError, match=r"missing .'bn.bias'"):
        _dense.load_head(ours, file)


def test_modes_come_back():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1).eval()
    with pytest.raises(KeyError), _dense.evaluating(first, second):
        assert not first.training
        raise KeyError
    assert first.training
    assert not second.training


def test_every_process_takes_the_head_of_the_main_one(monkeypatch):
    head = torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(head.weight, 5.0)
    head.num_batches_tracked += 3
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    _dense.agree(head)  # alone, nothing changes
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())
    # Another process gives nothing to the sum and takes what the main one gave.
    theirs = iter([tensor + 1 for tensor in before.values()])
    monkeypatch.setattr(_dense, "is_main", lambda: False)
    monkeypatch.setattr(_dense, "all_reduce_sum", lambda given: given + next(theirs))
    _dense.agree(head)
    assert all(torch.equal(before[name] + 1, tensor) for name, tensor in head.state_dict().items())
