# SPDX-License-Identifier: Apache-2.0
import importlib.metadata

import torch

from opendino.cli import doctor
from opendino.cli.main import main


def test_the_report(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["doctor"]) == 0
    report = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert report["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # the build may stand behind
    assert report["numpy"] == importlib.metadata.version("numpy")
    assert "OMP_NUM_THREADS is 1" in report["threads"]
    assert report["cuda"] == "none; training runs on the CPU"
    assert "GiB free" in report["disk"]


def test_the_function_finds_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_storage", lambda: [("disk", "of a moment")])
    found = doctor.doctor()
    assert main(["doctor"]) == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [list(one) for one in found]


def test_what_is_missing_says_what_it_is_good_for(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_OPTIONAL", {"no-such-package": ("nothing", "miracles")})
    monkeypatch.setattr(doctor, "_CORE", ("no-such-core",))
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "not installed; miracles" in report
    assert "missing: pip install it" in report


def test_what_is_there_and_broken_says_what_to_do(capsys, monkeypatch):
    def broken(name):
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist\nand a page of C++")
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "_OPTIONAL", {"timm": ("timm", "x"), "opencv-python-headless": ("cv2", "y")})
    monkeypatch.setattr(doctor, "_version", lambda _name: "1.0")
    monkeypatch.setattr(doctor, "import_module", broken)
    assert main(["doctor"]) == 0
    report = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert report["timm"] == (
        "1.0, cannot be imported (RuntimeError: operator torchvision::nms does not exist): its torchvision was not "
        f"built for torch {torch.__version__}; install both from the same index, or do without: opendino needs neither"
    )
    assert "libGL.so.1" in report["opencv-python-headless"]
    assert report["opencv-python-headless"].endswith("pip install --force-reinstall opencv-python-headless")


def test_a_gpu(capsys, monkeypatch):
    class Found:
        name, total_memory, major, minor = "Tensor Machine", 80 * 2**30, 9, 0

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Found)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert main(["doctor"]) == 0
    assert "Tensor Machine, 80 GiB, capability 9.0, bf16" in capsys.readouterr().out


def test_speed_is_measured_when_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("opendino.cli._speed.measure", lambda: [("decoding", "fast enough")])
    assert main(["doctor", "speed"]) == 0
    assert "fast enough" in capsys.readouterr().out


def test_words_are_refused(capsys):
    assert main(["doctor", "seed=1"]) == 2
    assert "takes no words" in capsys.readouterr().err
