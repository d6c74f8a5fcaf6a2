# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch

from opendino.errors import CheckpointError
from opendino.methods.guide import Said
from opendino.train import guide_cache as module
from opendino.train.guide_cache import GuideCache, names_of


class Teacher:
    """Says the mean colour of a crop and of its four quarters; counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, crops):
        self.asked += len(crops)
        quarters = torch.nn.functional.avg_pool2d(crops, crops.shape[-1] // 2)
        return Said(crops.mean(dim=(2, 3)), quarters.permute(0, 2, 3, 1))


def crops_of(*seeds, size=8):
    return torch.stack([torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def check(said, crops):
    """What is said goes through float16, found or new."""
    wanted = Teacher()(crops)
    assert torch.equal(said.cls, wanted.cls.half().float())
    assert torch.equal(said.patches, wanted.patches.half().float())


def test_only_new_crops_are_asked_for_and_the_order_is_kept(tmp_path):
    cache, teacher = GuideCache(tmp_path / "kept"), Teacher()
    for seeds, asked in (((0, 1, 2), 3), ((2, 3, 0, 4), 5), ((4, 3, 2, 1, 0), 5), ((1, 1), 5)):
        crops = crops_of(*seeds)
        check(cache.said(crops, teacher), crops)
        assert teacher.asked == asked
    assert (cache.asked, cache.found) == (14, 9)


def test_another_process_and_another_size_are_found_apart(tmp_path, monkeypatch):
    first, second, teacher = GuideCache(tmp_path), GuideCache(tmp_path), Teacher()
    monkeypatch.setattr(module, "_REFRESH", 1)
    first.said(crops_of(0, 1), teacher)
    check(second.said(crops_of(1, 2), teacher), crops_of(1, 2))
    check(first.said(crops_of(2, size=12), teacher), crops_of(2, size=12))
    assert teacher.asked == 4
    check(first.said(crops_of(2, 0), teacher), crops_of(2, 0))
    assert teacher.asked == 4
    assert len(list(tmp_path.glob("*.tokens"))) == 3


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path, caplog):
    teacher = Teacher()
    GuideCache(tmp_path).said(crops_of(0, 1, 2), teacher)
    (keys,), (tokens,) = tmp_path.glob("*.keys"), tmp_path.glob("*.tokens")
    keys.write_bytes(keys.read_bytes()[:-3])  # in the middle of the third key
    check(GuideCache(tmp_path).said(crops_of(0, 1, 2), teacher), crops_of(0, 1, 2))
    assert teacher.asked == 4
    content = bytearray(tokens.read_bytes())
    content[0] ^= 1
    tokens.write_bytes(content[: len(content) - 70])  # the first is altered, the second cut
    with caplog.at_level(logging.WARNING):
        check(GuideCache(tmp_path).said(crops_of(0, 1, 2), teacher), crops_of(0, 1, 2))
    assert teacher.asked == 6
    assert "record 0 is damaged" in caplog.text
    assert "record 1 is damaged" in caplog.text


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        GuideCache(tmp_path / "file").said(crops_of(0), Teacher())


def test_crops_are_told_apart_by_any_pixel():
    crop = crops_of(0)
    others = [crop.clone() for _ in range(4)]
    others[0][0, 0, 0, 0] += 1e-6
    others[1][0, 2, 7, 7] *= -1
    others[2][0] = others[2][0].flip(2)
    others[3][0, :, [0, 1]] = others[3][0, :, [1, 0]]
    assert len({*names_of(crop), *(name for other in others for name in names_of(other))}) == 5
    assert names_of(torch.cat([crop, crop])) == names_of(crop) * 2
