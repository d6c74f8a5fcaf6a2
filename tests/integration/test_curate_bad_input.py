# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in curation, by the command: one sentence, exit code 2, and finished parts are left as they were.

The copy detector is a scripted stand-in for SSCD, with a TorchScript file as a user would have it.
"""

import errno
import os
import resource
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from opendino.cli.main import main
from opendino.stages.folder import write_array


class StandIn(torch.nn.Module):
    """A small grey square and its mirror image; not a number for a plain picture, zeros for a bright one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, s, s] to features [B, 144], as SSCD would."""
        grey = x.mean(dim=1, keepdim=True)
        spread = (grey.amax(dim=[1, 2, 3]) - grey.amin(dim=[1, 2, 3]))[:, None]
        grey = torch.nn.functional.adaptive_avg_pool2d(grey, 12)
        grey = grey - grey.mean(dim=[1, 2, 3], keepdim=True)
        bright = (x.mean(dim=[1, 2, 3]) > 2.0).float()[:, None]
        return (grey + grey.flip(3)).flatten(1) / spread * (1.0 - bright)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "stand_in.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(StandIn()).save(str(path))
    return [f"copy.model=torchscript:{path}", "copy.run_code=true", "copy.size=32", "copy.device=cpu"]


@pytest.fixture
def heap(tmp_path):
    """Twenty random pictures; of the first three a mirrored, grey and shrunken copy; number 19 is also in `val`."""
    rng, pool = np.random.default_rng(0), tmp_path / "pool"
    for folder in (pool, tmp_path / "val", tmp_path / "empty"):
        folder.mkdir()
    for number in range(20):
        small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
        picture = small.resize((48, 48), Image.Resampling.BICUBIC)
        picture.save(pool / f"{number:02d}.png")
        if number < 3:
            change = (ImageOps.mirror, ImageOps.grayscale, lambda image: image.resize((24, 24)))[number]
            change(picture).save(pool / f"{number:02d}-copy.jpg", quality=60)
        if number == 19:
            ImageOps.mirror(picture).resize((40, 40)).save(tmp_path / "val" / "19.png")
    return pool


def words(heap, out, *more):
    return [f"out={out}", f"index.sources=[{heap}]", "index.rows=7", "embed.model=thumbnail", "balance.size=6",
            "cluster.kmeans.device=cpu", "search.device=cpu", *more]  # fmt: skip


def refused(capsys, arguments, *parts):
    capsys.readouterr()
    assert main(["curate", *arguments]) == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    for part in parts:
        assert part in lines[0]


def state(out):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("part-*") if path.is_file()}


def test_a_detector_of_the_user_at_the_published_thresholds(tmp_path, heap, detector, capsys):
    """Copies and a leak are found, features of no use are set aside and said."""
    Image.new("RGB", (48, 48)).save(heap / "plain.png")
    bright = Image.new("RGB", (48, 48), (255, 255, 255))
    bright.putpixel((3, 3), (0, 0, 0))
    bright.save(heap / "bright.png")
    out = tmp_path / "out"
    refused(capsys, words(heap, out, detector[0]), "stand_in.pt", "copy.run_code=true")
    assert main(["curate", *words(heap, out, *detector, f"references=[{tmp_path / 'val'}]")]) == 0
    reasons = pq.read_table(sorted((out / "copy_embed").glob("part-*.parquet")))["reason"].to_pylist()
    assert sorted(filter(None, reasons)) == ["features: not finite", "features: zero vector"]
    assert np.load(out / "copy_embed" / "part-00000.npy").shape[1] == 144
    index = pq.read_table(sorted((out / "index").glob("part-*.parquet"))).to_pydict()
    key = dict(zip(index["row"], index["key"], strict=True))
    copies = pq.read_table(out / "dedup" / "copies.parquet").to_pydict()
    assert {key[row][:2] for row in copies["row"]} == {"00", "01", "02"}
    assert sum(copies["kept"]) == 3
    leaks = pq.read_table(out / "decontaminate" / "leaks.parquet").to_pydict()
    assert [key[row] for row in leaks["row"]] == ["19.png"]
    assert '"threshold": 0.6' in (out / "dedup_edges" / "plan.json").read_text()
    assert '"threshold": 0.45' in (out / "decontaminate_edges" / "plan.json").read_text()


def test_what_cannot_be_is_said(tmp_path, heap, capsys):
    out = tmp_path / "out"
    refused(capsys, words(heap, out, f"queries=[{tmp_path / 'empty'}]"), "empty", "the folder is empty")
    (tmp_path / "empty" / "0.png").write_bytes(b"no picture")
    refused(capsys, words(heap, out, f"queries=[{tmp_path / 'empty'}]"), "none of 1 images can be used", "unreadable")
    refused(capsys, words(heap, out, "balance.size=500"), "there are 23 images", "give 23 or less")
    refused(capsys, words(heap, out, "balance.size=22"), "there are 20 images", "give 20 or less")  # without copies
    refused(capsys, words(heap, out, "cluster.levels=[90]"), "90 clusters of 23 images")
    refused(capsys, words(heap, out, "mix.parts=[retrieve]"), "retrieve selects nothing without queries=")


def test_spoilt_features_are_named(tmp_path, heap, capsys):
    """Not a number, zeros, and another width, put into finished parts behind the pipeline's back."""
    out = tmp_path / "out"
    assert main(["curate", "dedup", *words(heap, out)]) == 0
    path = out / "copy_embed" / "part-00001.npy"
    good = np.load(path)
    for value, word in ((np.nan, "is not finite"), (0.0, "is a zero vector")):
        bad = good.copy()
        bad[2] = value
        write_array(path, bad)
        refused(capsys, ["dedup", *words(heap, out, "dedup.k=5")], "part-00001.npy: row 2", word, "embed it again")
    write_array(path, np.ones((len(good), 2 * good.shape[1]), dtype=np.float16))  # as many bytes
    refused(capsys, ["dedup", *words(heap, out, "dedup.k=5")], "part-00001.npy", "one model has to make all of them")
    path.unlink()
    assert main(["curate", "dedup", *words(heap, out, "dedup.k=5")]) == 0
    assert np.array_equal(np.load(path), good)


def test_a_full_disk_leaves_finished_parts(tmp_path, heap, capsys):
    """A limit of the size of files stands for the disk: small parts are written, those of the features are not."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["curate", *words(heap, whole)]) == 0
    largest = max(path.stat().st_size for path in (whole / "index").iterdir())
    features = (whole / "copy_embed" / "part-00000.npy").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert largest < features - 1
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (features - 1, hard))
        refused(capsys, words(heap, out), "part-00000.npy: could not be written", "make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finished = state(out / "index")
    assert finished
    assert not list(out.rglob("*.partial"))
    assert main(["curate", *words(heap, out)]) == 0
    assert state(out / "index") == finished
    made, wanted = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.parquet")} for root in (out, whole)
    )
    assert made == wanted


def all_words(heap, out, *more):
    (heap.parent / "queries").mkdir(exist_ok=True)
    for number in (3, 4):
        (heap.parent / "queries" / f"{number}.png").write_bytes((heap / f"{number:02d}.png").read_bytes())
    sets = [f"references=[{heap.parent / 'val'}]", f"queries=[{heap.parent / 'queries'}]", "retrieve.method=sample"]
    return words(heap, out, *sets, "mix.parts=[balance,retrieve]", "mix.tar=5", "prune.eps=0.01", *more)


def results(out):
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.suffix != ".html"}


def fails_after(monkeypatch, files, fault):
    """From then on the disk says no to every file that is to get its name."""
    left, replace = [files], Path.replace

    def limited(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(fault, os.strerror(fault))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", limited)


def test_a_disk_that_is_full_in_every_stage(tmp_path, heap, capsys, monkeypatch):
    """Room for 35 more files each time: one sentence each, finished stages stay, the end is that of one with room."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["curate", *all_words(heap, whole)]) == 0
    done, stopped = {}, set()
    for _ in range(20):
        with monkeypatch.context() as disk:
            fails_after(disk, 35, errno.ENOSPC)
            code = main(["curate", *all_words(heap, out)])
        assert not list(out.rglob("*.partial"))
        assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished stage was made again"
        done = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
        if code == 0:
            break
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "could not be written (No space left on device); make room and give the same command again" in line
        stopped.add(line.split(str(out) + "/")[1].split("/")[0])
    assert code == 0
    assert len(stopped) >= 3, "it was to stop in several stages"
    assert results(out) == results(whole)


def test_a_read_only_disk(tmp_path, heap, capsys, monkeypatch):
    """What is finished is said to be; anything else is refused before a file of before is lost."""
    out = tmp_path / "out"
    assert main(["curate", *all_words(heap, out)]) == 0
    before = results(out)
    with monkeypatch.context() as disk:
        fails_after(disk, 0, errno.EROFS)
        assert main(["curate", *all_words(heap, out)]) == 0
        for more in ("balance.size=5", "dedup.threshold=0.8", "index.min_side=30"):
            refused(capsys, all_words(heap, out, more), "(Read-only file system); name another folder")
            assert results(out) == before
        refused(capsys, all_words(heap, tmp_path / "new"), "(Read-only file system); name another folder")
    assert main(["curate", *all_words(heap, out, "balance.size=5")]) == 0
    assert main(["curate", *all_words(heap, out)]) == 0
    assert results(out) == before
