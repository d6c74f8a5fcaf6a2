# SPDX-License-Identifier: Apache-2.0
"""Auto classes that choose ours for DINOv2 and fall through to transformers for all else; read `modeling.py` next.

`register()` does the same to transformers' own Auto classes and pipelines, for the whole process. It is never done on
import.
"""

import inspect
from pathlib import Path
from typing import Any

import transformers
from transformers import PretrainedConfig

from opendino.checkpoint.convert._hf_config import CONFIG, PREPROCESSOR
from opendino.hf import modeling
from opendino.hf._places import base_of, fetch, hub_arguments, reached, read_object
from opendino.hf.configuration import Dinov2Config, Dinov2WithRegistersConfig
from opendino.hf.errors import MissingFilesError
from opendino.hf.image_processing import Dinov2ImageProcessor

CONFIGS: dict[str, type[Dinov2Config]] = {
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
}
"""Our config class of a model type."""
MODELS: dict[str, dict[str, type[modeling.Dinov2PreTrainedModel]]] = {
    "AutoModel": {
        "dinov2": modeling.Dinov2Model,
        "dinov2_with_registers": modeling.Dinov2WithRegistersModel,
    },
    "AutoModelForImageClassification": {
        "dinov2": modeling.Dinov2ForImageClassification,
        "dinov2_with_registers": modeling.Dinov2WithRegistersForImageClassification,
    },
    "AutoBackbone": {
        "dinov2": modeling.Dinov2Backbone,
        "dinov2_with_registers": modeling.Dinov2WithRegistersBackbone,
    },
}
"""Our model class by the name of the Auto class and the model type."""
PROCESSORS = ("BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil", "Dinov2ImageProcessor")
"""Types in `preprocessor_config.json` that our image processor stands for."""


class AutoConfig:
    """`transformers.AutoConfig` with our configs for our model types."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as in transformers
        """The config of a published name, repository or folder, of the class that fits its `model_type`.

        That of a PEFT adapter is its base model's.
        """
        with reached(pretrained_model_name_or_path, CONFIG, kwargs) as arguments:
            name = base_of(pretrained_model_name_or_path, arguments) or pretrained_model_name_or_path
            ours = CONFIGS.get(_model_type(name, arguments) or "")
            return (ours or transformers.AutoConfig).from_pretrained(name, **arguments)

    @staticmethod
    def for_model(model_type: str, **kwargs: Any) -> Any:  # noqa: ANN401  as in transformers
        """A new config of a model type."""
        ours = CONFIGS.get(model_type)
        return ours(**kwargs) if ours else transformers.AutoConfig.for_model(model_type, **kwargs)


class _AutoModel:
    """What the three Auto classes of models share; a subclass has the name of the one it stands in for."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """A model with its weights, of the class that fits the `model_type` in `config.json`."""
        name, config = pretrained_model_name_or_path, kwargs.get("config")
        known = isinstance(config, PretrainedConfig)
        with reached(name, CONFIG, kwargs) as arguments:
            kind = config.model_type if known else _model_type(config or name, arguments)
            ours = MODELS[cls.__name__].get(kind or "")
            if ours is None:
                return getattr(transformers, cls.__name__).from_pretrained(name, **arguments)
            if known:
                arguments["config"] = _our_config(config)
            arguments.pop("trust_remote_code", None)
            return ours.from_pretrained(name, **arguments)

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:  # noqa: ANN401  as in transformers
        """A model with new weights, of the class that fits the config; transformers' own configs do as well."""
        ours = MODELS[cls.__name__].get(config.model_type)
        if ours is None:
            return getattr(transformers, cls.__name__).from_config(config, **kwargs)
        kwargs.pop("trust_remote_code", None)
        return ours._from_config(_our_config(config), **kwargs)


class AutoModel(_AutoModel):
    """`transformers.AutoModel` with our backbones for our model types."""


class AutoModelForImageClassification(_AutoModel):
    """`transformers.AutoModelForImageClassification` with our classifiers for our model types."""


class AutoBackbone(_AutoModel):
    """`transformers.AutoBackbone` with our backbones for our model types; local folders work."""


class AutoImageProcessor:
    """`transformers.AutoImageProcessor` with our image processor for our model types."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as in transformers
        """The image processor of a published name, repository or folder.

        Ours where the file names a processor that does what ours does, and `config.json`, where there is one, is of
        our model types; transformers' for all else.
        """
        name = pretrained_model_name_or_path
        with reached(name, PREPROCESSOR, kwargs) as arguments:
            if not _has_our_processor(name, arguments):
                return transformers.AutoImageProcessor.from_pretrained(name, **arguments)
            for other in ("config", "trust_remote_code"):
                arguments.pop(other, None)
            return Dinov2ImageProcessor.from_pretrained(name, **arguments)


class BitImageProcessorPil(Dinov2ImageProcessor):
    """What transformers' `AutoImageProcessor` opens after `register()`, by the name that published files hold.

    Other models (Bit, Hiera, FocalNet ...) share that name: theirs are transformers' own as before.
    """

    resizes_by = "pil"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *places: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Our image processor where `config.json` is of our model types, else transformers'."""
        if _model_type(pretrained_model_name_or_path, kwargs) not in CONFIGS:
            theirs = getattr(transformers, cls.__name__)
            return theirs.from_pretrained(pretrained_model_name_or_path, *places, **kwargs)
        kwargs["backend"] = cls.resizes_by
        return Dinov2ImageProcessor.from_pretrained(pretrained_model_name_or_path, *places, **kwargs)


class BitImageProcessor(BitImageProcessorPil):
    """The same for the backend "torchvision", which transformers takes where torchvision is installed."""

    resizes_by = "torch"


def register() -> None:
    """Make transformers' own Auto classes and pipelines use our classes for our model types, in this process.

    Calling it again changes nothing. Folders stay what they are: nothing is written into them. transformers 4 looks
    for the image processors of published files in its own list first, so its `AutoImageProcessor` keeps them.
    """
    processors = {"pil": BitImageProcessorPil, "torchvision": BitImageProcessor, "opendino": Dinov2ImageProcessor}
    for model_type, config in CONFIGS.items():
        transformers.AutoConfig.register(model_type, config, exist_ok=True)
        for name, models in MODELS.items():
            getattr(transformers, name).register(config, models[model_type], exist_ok=True)
        register_processor = transformers.AutoImageProcessor.register
        if "image_processor_classes" in inspect.signature(register_processor).parameters:  # transformers 5
            register_processor(config, image_processor_classes=dict(processors), exist_ok=True)
        else:
            register_processor(config, slow_image_processor_class=Dinov2ImageProcessor, exist_ok=True)


def _our_config(config: PretrainedConfig) -> Dinov2Config:
    ours = CONFIGS[config.model_type]
    if isinstance(config, ours):
        return config
    made = ours.from_dict(config.to_dict())
    made._attn_implementation = config._attn_implementation
    return made


def _model_type(name: Any, kwargs: dict[str, Any]) -> str | None:  # noqa: ANN401  str or path
    """`model_type` of a `config.json`; None where there is none, or it asks for code of its own."""
    if name is None or Path(name).is_file():
        return None
    path = fetch(base_of(name, kwargs) or name, CONFIG, kwargs)
    fields = {} if path is None else read_object(path)
    return None if fields.get("auto_map") else fields.get("model_type")


def _has_our_processor(name: Any, kwargs: dict[str, Any]) -> bool:  # noqa: ANN401  str or path
    try:
        fields, _ = Dinov2ImageProcessor.get_image_processor_dict(name, **hub_arguments(kwargs))
    except MissingFilesError:  # transformers also looks elsewhere
        return False
    if fields.get("auto_map") or fields.get("image_processor_type", PROCESSORS[0]) not in PROCESSORS:
        return False
    config = kwargs.get("config")
    kind = config.model_type if isinstance(config, PretrainedConfig) else _model_type(name, kwargs)
    return kind is None or kind in CONFIGS
