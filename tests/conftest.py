# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures; jaxtyping's shapes are checked by beartype in every test of the package."""

import os
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("opendino", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images for tests; skips, visibly, where it is missing."""
    folder = Path(os.environ.get("OPENDINO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images not found in {folder}; set OPENDINO_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
