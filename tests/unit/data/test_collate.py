# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.data.augment import Crops
from opendino.data.collate import Skipped, collate, normalize
from opendino.data.masking import MaskConfig, batch_masks
from opendino.errors import DataError


def views(image, locals=3, dtype=np.uint8):
    """Views filled with ten times the image's number plus the crop's; local crops count on from 2."""
    filled = [
        np.full((2, 8 if crop < 2 else 4, 8 if crop < 2 else 4), 10 * image + crop, dtype) for crop in range(2 + locals)
    ]
    return Crops(filled[:2], filled[2:])


def batch(images=4, **options):
    masks = batch_masks(2 * images, (4, 4), MaskConfig(), np.random.default_rng(0))
    return collate([views(i, **options) for i in range(images)], masks, list(range(100, 100 + images)))


def test_rows_are_crop_major():
    made = batch()
    assert made.global_crops[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 1, 11, 21, 31]
    assert made.local_crops[:, 0, 0, 0].tolist() == [2, 12, 22, 32, 3, 13, 23, 33, 4, 14, 24, 34]
    assert made.ids.tolist() == [100, 101, 102, 103]
    assert made.images == 4


def test_masks_travel_with_the_crops():
    made = batch()
    assert made.masks.shape == (8, 16)
    assert torch.equal(made.masks.flatten().nonzero().flatten(), made.mask_indices)
    rows = made.masks.any(dim=1).sum()
    assert made.masks_weight.sum() == pytest.approx(rows.item())


def test_no_local_crops_leave_no_rows():
    made = batch(locals=0)
    assert len(made.local_crops) == 0
    assert len(made.normalize((0.5, 0.5), (0.5, 0.5)).local_crops) == 0


def test_bytes_and_floats_in_one_batch_become_floats():
    masks = batch_masks(4, (4, 4), MaskConfig(), np.random.default_rng(0))
    mixed = collate([views(5), views(0, dtype=np.float32)], masks, [0, 1])
    assert mixed.global_crops.dtype == torch.float32
    assert mixed.global_crops[0, 0, 0, 0].item() == pytest.approx(50 / 255)
    assert mixed.global_crops[1, 0, 0, 0].item() == 0


def test_normalize_by_hand():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).repeat(1, 2, 1, 1)
    normalized = normalize(levels, (0.5, 0.2), (0.25, 0.1))
    torch.testing.assert_close(normalized[0, 0, 0], torch.tensor([-2.0, -1.2, 2.0]))
    torch.testing.assert_close(normalized[0, 1, 0], torch.tensor([-2.0, 0.0, 8.0]))
    torch.testing.assert_close(normalize(levels / 255, (0.5, 0.2), (0.25, 0.1)), normalized)


def test_normalize_is_exact_to_float32():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    exact = (levels.double() / 255 - 0.485) / 0.229
    assert (normalize(levels, (0.485,), (0.229,)).double() - exact).abs().max() < 3e-7


def test_moving_keeps_everything_else():
    made = collate(
        [views(0)], batch_masks(2, (4, 4), MaskConfig(), np.random.default_rng(0)), [7], [Skipped(3, "a", "b")]
    )
    moved = made.to("meta")
    assert moved.global_crops.device.type == moved.masks.device.type == moved.ids.device.type == "meta"
    assert moved.skipped == made.skipped
    assert made.global_crops.device.type == "cpu"


def test_parts_of_a_batch_hold_their_images_and_nothing_else():
    masks = batch_masks(8, (4, 4), MaskConfig(), np.random.default_rng(0))
    skipped = [Skipped(9, "a", "b")]
    whole = collate([views(number) for number in range(4)], masks, [10, 11, 12, 13], skipped)
    parts = whole.split(2)
    assert [part.ids.tolist() for part in parts] == [[10, 11], [12, 13]]
    assert [part.images for part in parts] == [2, 2]
    assert (parts[0].skipped, parts[1].skipped) == (whole.skipped, ())
    for name in ("global_crops", "local_crops", "masks"):
        by_crop = [getattr(part, name).unflatten(0, (-1, 2)) for part in parts]
        assert torch.equal(torch.cat(by_crop, dim=1).flatten(0, 1), getattr(whole, name)), name
    for part in parts:
        assert torch.equal(part.mask_indices, part.masks.flatten().nonzero().flatten())
        rows = part.mask_indices // 16
        sums = torch.zeros(4).index_add(0, rows, part.masks_weight)
        assert torch.allclose(sums, part.masks.any(dim=1).float())
    with pytest.raises(DataError, match="4 images cannot be cut into 3"):
        whole.split(3)


def test_parts_of_a_padded_batch_are_those_of_the_batch_padded():
    config = MaskConfig()
    masks = batch_masks(12, (4, 4), config, np.random.default_rng(0))
    whole = collate([views(number) for number in range(6)], masks, list(range(6)))
    padded = whole.pad(12, config)
    assert whole.masked is None
    assert len(padded.mask_indices) == masks.upperbound
    assert torch.equal(padded.mask_indices[padded.masked], whole.mask_indices)
    for part, wanted in zip(padded.split(3), whole.split(3), strict=True):
        real = part.masked
        assert torch.equal(part.masks, wanted.masks)
        assert torch.equal(part.mask_indices[real], wanted.mask_indices)
        assert torch.equal(part.masks_weight[real], wanted.masks_weight)
        assert not part.masks_weight[~real].any()
        assert part.padding.counts == tuple(wanted.masks.sum(dim=1).tolist())
        assert len(part.mask_indices) == part.padding.length(16)
