# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face face: the names of transformers' DINOv2, on our code; needs `pip install "opendino[hf]"`.

Change `from transformers import AutoModel` to `from opendino.hf import AutoModel` and keep the rest. Published
folders load as they are, folders written here open in plain transformers. Names resolve on first use: importing this
package imports neither torch nor transformers. Read `modeling.py` next.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from opendino.hf.errors import MissingTransformersError

if TYPE_CHECKING:
    from opendino.hf.auto import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        register,
    )
    from opendino.hf.configuration import Dinov2Config, Dinov2WithRegistersConfig
    from opendino.hf.image_processing import Dinov2ImageProcessor
    from opendino.hf.modeling import (
        Dinov2Backbone,
        Dinov2ForImageClassification,
        Dinov2Model,
        Dinov2PreTrainedModel,
        Dinov2WithRegistersBackbone,
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersModel,
        Dinov2WithRegistersPreTrainedModel,
    )

__all__ = [
    "AutoBackbone",
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2ImageProcessor",
    "Dinov2Model",
    "Dinov2PreTrainedModel",
    "Dinov2WithRegistersBackbone",
    "Dinov2WithRegistersConfig",
    "Dinov2WithRegistersForImageClassification",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersPreTrainedModel",
    "register",
]


def _home(name: str) -> str:
    if name.endswith("Config") and name != "AutoConfig":
        return "configuration"
    if name == "Dinov2ImageProcessor":
        return "image_processing"
    return "auto" if name.startswith("Auto") or name == "register" else "modeling"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'opendino.hf' has no attribute '{name}'")
    try:
        return getattr(import_module(f"opendino.hf.{_home(name)}"), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingTransformersError(
            f"opendino.hf.{name} needs the package transformers, which is not installed; "
            'run: pip install "opendino[hf]"'
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
