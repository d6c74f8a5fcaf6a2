# SPDX-License-Identifier: Apache-2.0
"""Oracles and pictures that several tests of the data layer use."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def oracle():
    """The file that made torchvision's numbers: its pictures and parameters."""
    return load("torchvision_oracle")


@pytest.fixture(scope="session")
def golden(oracle):
    """torchvision's numbers, by name."""
    with np.load(oracle.STORED) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="session")
def tiff_oracle():
    """The file that made small TIFF files: their layouts and arrays."""
    return load("tifffile_oracle")


@pytest.fixture(scope="session")
def encode():
    """An image's bytes in a format."""

    def to_bytes(image, format="PNG", **options):
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return stream.getvalue()

    return to_bytes


@pytest.fixture
def image_folder(tmp_path, oracle, encode):
    """A folder of two classes with three pictures each, all different."""
    root = tmp_path / "images"
    for number in range(6):
        folder = root / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = oracle.picture("RGB", 40 + number, 50 - number)
        (folder / f"{number}.png").write_bytes(encode(picture))
    return root
