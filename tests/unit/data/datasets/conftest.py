# SPDX-License-Identifier: Apache-2.0
import io
import tarfile

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def png():
    """Bytes of a small picture by its number."""

    def make(number):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def make_tar(tmp_path):
    """Writes a tar of named members; its path and the members."""

    def make(name, members):
        path = tmp_path / name
        with tarfile.open(path, "w") as archive:
            for member, content in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return path, members

    return make
