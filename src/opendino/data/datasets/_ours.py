# SPDX-License-Identifier: Apache-2.0
"""Folders that opendino wrote and that are no images, though their arrays would pass for some; see `open_dataset`."""

from pathlib import Path
from typing import Any

from opendino.errors import DataError
from opendino.files import read_json

_MANIFEST = "manifest"


def refuse_ours(folder: Path) -> None:
    """Refuse a run, a curation, one of its stages, or a folder of features where images are wanted.

    Args:
        folder: any that is there.

    Raises:
        DataError: it is one of these; says what was rather meant.
    """
    for place in (folder, folder / _MANIFEST):
        table = place / f"{_MANIFEST}.parquet"
        if table.is_file() and _wrote_stage(place):
            raise DataError(f"{folder}: is what opendino curate wrote; the images that it chose are named by {table}")
    if _wrote_stage(folder) or _wrote_stage(folder / "index"):
        raise DataError(
            f"{folder}: holds what opendino embed or curate made of images; name the images themselves, or, after a "
            "curation, its manifest/manifest.parquet"
        )
    if "opendino" in _said(folder / "run.json"):
        raise DataError(f"{folder}: is a run of training and no images; name the images themselves")


def _wrote_stage(folder: Path) -> bool:
    return str(_said(folder / "plan.json").get("made_by", "")).startswith("opendino")


def _said(path: Path) -> dict[str, Any]:
    try:
        said = read_json(path)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
