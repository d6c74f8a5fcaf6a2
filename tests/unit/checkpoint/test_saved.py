# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from safetensors.torch import save_file

from opendino.checkpoint import _saved
from opendino.checkpoint._saved import find


@pytest.fixture
def cut(tmp_path):
    """A tensor of seven rows in three files, of which one has none, and a number in the first alone."""
    whole = torch.randn(7, 3)
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, rows in zip(paths, (whole[:4], whole[4:], whole[7:]), strict=True):
        save_file({"w": rows.contiguous()} | ({"n": torch.tensor(5)} if path is paths[0] else {}), path)
    return whole, find(paths)


def test_any_rows_are_those_of_the_whole(cut):
    whole, found = cut
    assert (found["w"].shape, found["w"].ndim) == ((7, 3), 2)
    assert found["w"].rows().equal(whole)
    for start in range(8):
        for stop in range(start, 9):
            assert found["w"].rows(start, stop).equal(whole[start:stop]), (start, stop)
    assert found["w"].rows(7, 7).shape == (0, 3)


def test_a_number_is_given_as_it_is(cut):
    _, found = cut
    assert (found["n"].shape, found["n"].ndim, found["n"].rows().item()) == ((), 0, 5)


def test_only_the_rows_asked_for_are_read(cut, monkeypatch):
    """Of the files that hold them too: the others are not touched."""
    whole, found = cut
    asked = []

    class Watched:
        def __init__(self, number, file):
            self.number, self.file = number, file

        def get_slice(self, name):
            part = self.file.get_slice(name)
            return type("Part", (), {"__getitem__": lambda _, rows: asked.append((self.number, rows)) or part[rows]})()

        def get_tensor(self, name):
            asked.append((self.number, "all"))
            return self.file.get_tensor(name)

    pieces = [_saved._Piece(Watched(n, p.file), p.name, p.shape) for n, p in enumerate(found["w"]._pieces)]
    assert _saved.Saved(pieces).rows(1, 3).equal(whole[1:3])
    assert asked == [(0, slice(1, 3))]
    asked.clear()
    assert _saved.Saved(pieces).rows(3, 7).equal(whole[3:])
    assert asked == [(0, slice(3, 4)), (1, "all")]
