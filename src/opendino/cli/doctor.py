# SPDX-License-Identifier: Apache-2.0
"""`opendino doctor`: what this machine and this installation offer, to read or to put into a report."""

import importlib.metadata
import os
import platform
import shutil
import warnings
from importlib import import_module
from pathlib import Path

from opendino import __version__
from opendino.cli._words import split
from opendino.errors import ConfigError
from opendino.machine import usable_cores

SUMMARY = "versions, devices, threads and optional packages"
USAGE = """
usage: opendino doctor [speed]

Prints what opendino finds on this machine. It changes nothing. With the word speed it also measures, for about
fifteen seconds: decoding, a ViT-S/14 in fp32 and in bf16, plain and optimized, and which fast paths are taken and why.
"""

_CORE = ("torch", "numpy", "pillow", "safetensors", "huggingface-hub", "pydantic", "pyarrow", "scipy")
_OPTIONAL = {
    "transformers": ("transformers", "for the Hugging Face face: pip install 'opendino[hf]'"),
    "timm": ("timm", "only for evaluating models of timm (timm:NAME): pip install timm"),
    "torchvision": ("torchvision", "not needed by opendino; timm and some models of transformers want it"),
    "opencv-python-headless": ("cv2", "for fast decoding and crops: pip install 'opendino[fast]'"),
    "simplejpeg": ("simplejpeg", "for fast decoding: pip install 'opendino[fast]'"),
    "faiss-cpu": ("faiss", "for approximate search: pip install 'opendino[faiss]'"),
    "onnxruntime": ("onnxruntime", "for ONNX export: pip install 'opendino[onnx]'"),
    "fastapi": ("fastapi", "for the server: pip install 'opendino[serve]'"),
}
"""Package -> module, and what is said where it is missing."""


def main(argv: list[str]) -> int:
    """Print the report."""
    names, settings = split(argv, most=1)
    if settings or names not in ([], ["speed"]):
        raise ConfigError(f"'{(names + settings)[0]}': doctor takes no words but speed")
    rows = doctor(speed=bool(names))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name.ljust(width)}  {value}")
    return 0


def doctor(*, speed: bool = False) -> list[tuple[str, str]]:
    """What this machine and this installation offer, as names and what was found, in the order that is printed.

    Args:
        speed: measure too, for about fifteen seconds: decoding, a ViT-S/14 plain and optimized, and which fast paths
            are taken and why.
    """
    rows = [*_versions(), *_devices(), *_threads(), *_storage(), *_optional()]
    if speed:
        from opendino.cli._speed import measure

        rows += measure()
    return rows


def _versions() -> list[tuple[str, str]]:
    rows = [("opendino", __version__), ("python", f"{platform.python_version()} on {platform.platform()}")]
    return rows + [(name, _version(name) or "missing: pip install it") for name in _CORE]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[tuple[str, str]]:
    import torch

    rows = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        memory = f"{found.total_memory / 2**30:.0f} GiB"
        rows.append((f"cuda:{index}", f"{found.name}, {memory}, capability {found.major}.{found.minor}, {bf16}"))
    if not rows:
        rows.append(("cuda", "none; training runs on the CPU"))
    return rows


def _threads() -> list[tuple[str, str]]:
    import torch

    wish = os.environ.get("OMP_NUM_THREADS")
    return [
        ("cores", f"{usable_cores()} usable of {os.cpu_count()}"),
        ("threads", f"torch would use {torch.get_num_threads()}; OMP_NUM_THREADS is {wish or 'not set'}"),
    ]


def _storage() -> list[tuple[str, str]]:
    rows = [("disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free in this folder")]
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        small = "; too little for loader.workers > 0" if free < 0.25 else ""
        rows.append(("shared memory", f"{free:.1f} GiB free for the loader's workers{small}"))
    return rows


def _optional() -> list[tuple[str, str]]:
    return [(name, _told(name, module, use)) for name, (module, use) in _OPTIONAL.items()]


def _told(name: str, module: str, use: str) -> str:
    version = _version(name)
    if version is None:
        return f"not installed; {use}"
    fault = _fault(module)
    if not fault:
        return version
    if "torchvision" in fault:  # whose compiled part has to be of the very build of torch
        import torch

        what = f"its torchvision was not built for torch {torch.__version__}; install both from the same index, or "
        what += "pip uninstall torchvision" if name == "torchvision" else "do without: opendino needs neither"
    else:
        what = f"pip install --force-reinstall {name}"
    return f"{version}, cannot be imported ({fault}): {what}"


def _fault(module: str) -> str:
    """Why a module cannot be imported; nothing where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(module)
    except Exception as error:  # a broken package raises what it likes
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)
    return ""
