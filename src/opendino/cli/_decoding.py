# SPDX-License-Identifier: Apache-2.0
"""How a run decoded its images, as it recorded it; the verbs that show images to its model decode them alike."""

from pathlib import Path
from typing import Any

from opendino.checkpoint._reading import read_json
from opendino.checkpoint.hub import RUN_WEIGHTS
from opendino.checkpoint.weights import CONFIG, KIND, WEIGHTS
from opendino.config import read_yaml

_RUN = "config.yaml"


def decoding_of(model: str, prefix: str = "") -> dict[str, Any]:
    """Settings `value_range` and `orient` of the run that wrote a model, as defaults for `opendino.config.load`.

    Args:
        model: a run folder, its weights folder (also a copy), or the weights file inside one; anything else recorded
            nothing.
        prefix: of the settings, such as "data.".

    Raises:
        ConfigError: the run's settings cannot be read.
        CheckpointError: the weights' configuration cannot be read.
    """
    path = Path(model).resolve()
    folder = path.parent if path.name == WEIGHTS else path
    recorded = _in_weights(folder / RUN_WEIGHTS) or _in_weights(folder)
    for run in (folder, folder.parent) if folder.name == RUN_WEIGHTS else (folder,):
        if not recorded and (run / _RUN).is_file():
            recorded = read_yaml(run / _RUN).get("images") or {}
    return {f"{prefix}{name}": recorded[name] for name in ("value_range", "orient") if name in recorded}


def _in_weights(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        return {}
    config = read_json(folder / CONFIG)
    return config.get("provenance", {}).get("decoding", {}) if config.get("kind") == KIND else {}
