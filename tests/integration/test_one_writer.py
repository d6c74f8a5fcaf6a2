# SPDX-License-Identifier: Apache-2.0
"""Two commands into one folder, and a disk that takes no more: one sentence, and what was finished stays."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.cli.main import main
from opendino.embed import folder as embed_folder
from opendino.models.vision_transformer import VisionTransformer
from opendino.stages.folder import alone

# An embedding that stays in its second shard.
SLOW = """
import sys, time
from pathlib import Path
from opendino.cli.main import main
from opendino.embed import folder
make = folder._Shard.__call__
def slow(self, part):
    if part:
        Path(sys.argv[1]).write_text("")
        time.sleep(500)
    make(self, part)
folder._Shard.__call__ = slow
main(sys.argv[2:])
"""


@pytest.fixture
def words(tmp_path, picture_folder):
    torch.manual_seed(0)
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in sorted(picture_folder.rglob("*.png"))))
    out = ["--out", str(tmp_path / "out")]
    return [
        "embed",
        str(tmp_path / "list.txt"),
        "--model",
        str(tmp_path / "w"),
        *out,
        "rows=4",
        "size=16",
        "device=cpu",
    ]


def the_error(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_second_embedding_is_refused_until_the_first_is_killed(tmp_path, words, capsys):
    begun, out = tmp_path / "begun", tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, "-c", SLOW, str(begun), *words], env=environment)
    try:
        until = time.monotonic() + 250
        while not begun.exists():
            assert time.monotonic() < until
            assert first.poll() is None
            time.sleep(0.05)
        half = out / ".part-00001.parquet.99.partial"
        half.write_bytes(b"half")
        before = names(out)
        for more in ([], ["overwrite=true", "rows=5"]):
            assert main([*words, *more]) == 2
            assert "another process is writing here; wait for it or stop it" in the_error(capsys)
            assert names(out) == before
    finally:
        first.kill()
        first.wait()
    assert main(words) == 0
    assert {".writer.lock", ".locks", half.name} & names(out) == set()


@contextmanager
def another_process(folder):
    """Works in a folder while the block runs, then is killed."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with alone(folder):
            os.write(theirs, b"x")
            time.sleep(500)
        os._exit(0)
    assert os.read(ours, 1) == b"x"
    yield
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)
    os.close(theirs)


def test_a_second_curation_is_refused_too(tmp_path, picture_folder, capsys):
    words = ["curate", "index", f"index.sources=[{picture_folder}]", f"out={tmp_path / 'out'}"]
    with another_process(tmp_path / "out"):
        assert main(words) == 2
        assert "another process is writing here" in the_error(capsys)
        assert names(tmp_path / "out") == {".writer.lock"}
    assert main(words) == 0
    assert names(tmp_path / "out") == {"index_list", "index"}


def test_a_folder_made_for_nothing_goes_again(tmp_path, capsys):
    assert main(["curate", "index", f"index.sources=[{tmp_path / 'none'}]", f"out={tmp_path / 'out'}"]) == 2
    assert "no such file or folder" in the_error(capsys)
    assert not (tmp_path / "out").exists()


@contextmanager
def little_room(size):
    """A limit on the size of files: a write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_no_room_for_a_shard(tmp_path, words, capsys, monkeypatch, kind):
    out, make = tmp_path / "out", embed_folder._Shard.__call__

    def cramped(self, part):
        with little_room(700 if part else resource.RLIM_INFINITY):
            make(self, part)

    monkeypatch.setattr(embed_folder._Shard, "__call__", cramped)
    assert main([*words, f"format={kind}"]) == 2
    said = the_error(capsys)
    assert "part-00001." in said
    assert "could not be written" in said
    assert "File too large); make room and give the same command again" in said
    left = names(out)
    assert "part-00000.parquet" in left
    assert not [name for name in left if name.endswith(".partial") or name.startswith("part-00001.parquet")]
    first = (out / "part-00000.parquet").stat().st_mtime_ns
    monkeypatch.undo()
    assert main([*words, f"format={kind}"]) == 0
    assert (out / "part-00000.parquet").stat().st_mtime_ns == first, "what was finished is not made again"
