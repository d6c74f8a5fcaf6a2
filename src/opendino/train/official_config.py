# SPDX-License-Identifier: Apache-2.0
"""Training configurations of the official DINOv2 code, translated into recipes: `opendino config import`.

An official file is laid over the official defaults, as the official code does it, and read key by key. A key that is
neither translated nor known to mean nothing here is an error.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from opendino.config import fields_of, flatten, load, read_yaml
from opendino.errors import ConfigError
from opendino.models.presets import PRESETS
from opendino.models.vision_transformer import VisionTransformer
from opendino.train.config import PretrainConfig

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "dino.loss_weight": 1.0,
        "dino.head_n_prototypes": 65536,
        "dino.head_bottleneck_dim": 256,
        "dino.head_nlayers": 3,
        "dino.head_hidden_dim": 2048,
        "dino.koleo_loss_weight": 0.1,
        "ibot.loss_weight": 1.0,
        "ibot.mask_sample_probability": 0.5,
        "ibot.mask_ratio_min_max": [0.1, 0.5],
        "ibot.separate_head": False,
        "ibot.head_n_prototypes": 65536,
        "ibot.head_bottleneck_dim": 256,
        "ibot.head_nlayers": 3,
        "ibot.head_hidden_dim": 2048,
        "train.batch_size_per_gpu": 64,
        "train.OFFICIAL_EPOCH_LENGTH": 1250,
        "train.centering": "centering",
        "student.arch": "vit_large",
        "student.patch_size": 16,
        "student.drop_path_rate": 0.3,
        "student.layerscale": 1e-5,
        "student.drop_path_uniform": True,
        "student.ffn_layer": "mlp",
        "student.qkv_bias": True,
        "student.proj_bias": True,
        "student.ffn_bias": True,
        "student.num_register_tokens": 0,
        "student.interpolate_antialias": False,
        "student.interpolate_offset": 0.1,
        "teacher.momentum_teacher": 0.992,
        "teacher.final_momentum_teacher": 1.0,
        "teacher.warmup_teacher_temp": 0.04,
        "teacher.teacher_temp": 0.07,
        "teacher.warmup_teacher_temp_epochs": 30,
        "optim.epochs": 100,
        "optim.weight_decay": 0.04,
        "optim.weight_decay_end": 0.4,
        "optim.base_lr": 0.004,
        "optim.warmup_epochs": 10,
        "optim.min_lr": 1e-6,
        "optim.clip_grad": 3.0,
        "optim.freeze_last_layer_epochs": 1,
        "optim.scaling_rule": "sqrt_wrt_1024",
        "optim.patch_embed_lr_mult": 0.2,
        "optim.layerwise_decay": 0.9,
        "optim.adamw_beta1": 0.9,
        "optim.adamw_beta2": 0.999,
        "crops.global_crops_scale": [0.32, 1.0],
        "crops.local_crops_number": 8,
        "crops.local_crops_scale": [0.05, 0.32],
        "crops.global_crops_size": 224,
        "crops.local_crops_size": 96,
    }
)
"""What the official defaults say, of all keys that are translated. Source: `configs/ssl_default_config.yaml`."""

WITHOUT_MEANING: Mapping[str, str] = MappingProxyType(
    {
        "MODEL.WEIGHTS": "weights to begin with are given as `opendino adapt init=WEIGHTS data=DIR`",
        "compute_precision": "precision is train.precision, sharding parallel.mode",
        "train.dataset_path": "images are given as data=",
        "train.output_dir": "given as output_dir=",
        "train.saveckp_freq": "the official code does not read it",
        "train.cache_dataset": "the official code does not read it",
        "train.seed": "the official code does not read it; give seed=",
        "train.num_workers": "loader.workers is chosen for the machine",
        "student.pretrained_weights": "weights to begin with are given as `opendino adapt init=WEIGHTS data=DIR`",
        "student.block_chunks": "parameters are named without chunks, and such weights are read",
        "optim.lr": "the official code computes it from base_lr",
        "evaluation": "figures while training are knn.every",
    }
)
"""Official keys, or whole groups, that say nothing about a run here, and why."""

_NOTHING_IF_EMPTY = ("MODEL.WEIGHTS", "student.pretrained_weights")

_ARCHITECTURES = {
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_giant2": {"embed_dim": 1536, "depth": 40, "num_heads": 24},
}
_CHECKPOINTS = 3  # "epochs" between two, and how many are kept: fixed in the official code


class Imported(NamedTuple):
    """A translated configuration.

    Attributes:
        recipe: nested settings of ours, those that differ from our defaults.
        passed_over: official keys of the file that mean nothing here, with the reason.
    """

    recipe: dict[str, Any]
    passed_over: dict[str, str]

    def text(self, title: str) -> str:
        """The recipe as a file.

        Args:
            title: its first line.
        """
        notes = [f"# passed over: {key}: {why}" for key, why in self.passed_over.items()]
        body = yaml.safe_dump(self.recipe, sort_keys=False, default_flow_style=None, width=120)
        return "\n".join([f"# {title}", *notes, body])


@dataclass(frozen=True)
class _Official:
    """The merged values, by dotted key, and what they come to."""

    values: Mapping[str, Any]
    gpus: int

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 (whatever the file says)
        return self.values[key]

    def steps(self, key: str) -> int:
        """A length in official epochs as steps."""
        return round(self[key] * self["train.OFFICIAL_EPOCH_LENGTH"])


def import_official(path: Path, gpus: int) -> Imported:
    """Translate an official training configuration.

    Args:
        path: YAML file, as far as it differs from the official defaults.
        gpus: number of GPUs it was meant for; the file says images for each.

    Raises:
        ConfigError: a key that the official code does not have, or a value that cannot be translated.
    """
    given = flatten(read_yaml(path))
    passed_over = {key: why for key in given if (why := _why_not(key))}
    unknown = [key for key in given if key not in DEFAULTS and key not in passed_over]
    passed_over = {key: why for key, why in passed_over.items() if given[key] or key not in _NOTHING_IF_EMPTY}
    if unknown and set(given) <= set(fields_of(PretrainConfig)):
        raise ConfigError(f"{path}: is a recipe of opendino already; opendino config check {path} reads it")
    if unknown:
        raise ConfigError(
            f"{path}: {', '.join(unknown)}: no keys of an official DINOv2 training configuration; is it one of another "
            "program, or changed? take them out"
        )
    if gpus < 1:
        raise ConfigError(f"gpus = {gpus}: give the number of GPUs that {path.name} was meant for, 1 or more")
    official = _Official({**DEFAULTS, **{key: given[key] for key in given if key in DEFAULTS}}, gpus)
    if official["optim.scaling_rule"] != "sqrt_wrt_1024":
        raise ConfigError(
            f"{path}: optim.scaling_rule = {official['optim.scaling_rule']}: there is sqrt_wrt_1024 alone"
        )
    found: dict[str, Any] = {"student": _student(official, path)}
    for key, value in ((ours, translate(official)) for ours, translate in _TRANSLATIONS.items()):
        group, _, name = key.partition(".")
        found.setdefault(group, {})[name] = value
    _check(found, path)
    return Imported(found, passed_over)


def is_official(path: Path) -> bool:
    """Whether a file is a configuration of the official code, by two keys or more that are its own and not ours.

    Args:
        path: YAML file.

    Raises:
        ConfigError: it cannot be read.
    """
    ours = set(fields_of(PretrainConfig))
    keys = [key for key in flatten(read_yaml(path)) if key not in ours]
    return sum(key in DEFAULTS or bool(_why_not(key)) for key in keys) > 1


def _why_not(key: str) -> str:
    return next((why for name, why in WITHOUT_MEANING.items() if key == name or key.startswith(f"{name}.")), "")


def _student(official: _Official, path: Path) -> dict[str, Any]:
    """A preset, and what of it differs."""
    arch, patch = str(official["student.arch"]).removesuffix("_memeff"), official["student.patch_size"]
    if arch not in _ARCHITECTURES:
        raise ConfigError(f"{path}: student.arch = {arch} is not known; there are {', '.join(_ARCHITECTURES)}")
    ffn = official["student.ffn_layer"]
    wanted: dict[str, Any] = {
        **_ARCHITECTURES[arch],
        "patch_size": patch,
        "ffn_layer": "swiglu" if ffn == "swiglufused" else ffn,
        "img_size": official["crops.global_crops_size"],
        "init_values": official["student.layerscale"],
    }
    same = ("drop_path_rate", "drop_path_uniform", "qkv_bias", "proj_bias", "ffn_bias", "num_register_tokens")
    for name in (*same, "interpolate_antialias", "interpolate_offset"):
        wanted[name] = official[f"student.{name}"]
    preset = f"vit{arch.removeprefix('vit_')[0]}{patch}"
    preset = preset if preset in PRESETS else "vit_custom"
    defaults = inspect.signature(VisionTransformer).parameters
    has = {name: PRESETS[preset].get(name, defaults[name].default) for name in wanted}
    return {"preset": preset, **{name: value for name, value in wanted.items() if value != has[name]}}


_TRANSLATIONS: dict[str, Callable[[_Official], Any]] = {
    "teacher.momentum": lambda o: [o["teacher.momentum_teacher"], o["teacher.final_momentum_teacher"]],
    "teacher.temp": lambda o: [o["teacher.warmup_teacher_temp"], o["teacher.teacher_temp"]],
    "teacher.temp_warmup": lambda o: o.steps("teacher.warmup_teacher_temp_epochs"),
    "dino.loss_weight": lambda o: o["dino.loss_weight"],
    "dino.prototypes": lambda o: o["dino.head_n_prototypes"],
    "dino.hidden_dim": lambda o: o["dino.head_hidden_dim"],
    "dino.bottleneck_dim": lambda o: o["dino.head_bottleneck_dim"],
    "dino.nlayers": lambda o: o["dino.head_nlayers"],
    "dino.centering": lambda o: o["train.centering"],
    "ibot.loss_weight": lambda o: o["ibot.loss_weight"],
    "ibot.separate_head": lambda o: o["ibot.separate_head"],
    "ibot.prototypes": lambda o: o["ibot.head_n_prototypes"],
    "ibot.hidden_dim": lambda o: o["ibot.head_hidden_dim"],
    "ibot.bottleneck_dim": lambda o: o["ibot.head_bottleneck_dim"],
    "ibot.nlayers": lambda o: o["ibot.head_nlayers"],
    "koleo.loss_weight": lambda o: o["dino.koleo_loss_weight"],
    "koleo.gather": lambda _: False,  # each GPU by itself
    "masks.probability": lambda o: o["ibot.mask_sample_probability"],
    "masks.ratio": lambda o: list(o["ibot.mask_ratio_min_max"]),
    "crops.global_size": lambda o: o["crops.global_crops_size"],
    "crops.global_scale": lambda o: list(o["crops.global_crops_scale"]),
    "crops.local_size": lambda o: o["crops.local_crops_size"],
    "crops.local_scale": lambda o: list(o["crops.local_crops_scale"]),
    "crops.local_number": lambda o: o["crops.local_crops_number"],
    "optim.base_lr": lambda o: o["optim.base_lr"],
    "optim.min_lr": lambda o: o["optim.min_lr"],
    "optim.warmup": lambda o: o.steps("optim.warmup_epochs"),
    "optim.freeze_last_layer": lambda o: o.steps("optim.freeze_last_layer_epochs"),
    "optim.weight_decay": lambda o: [o["optim.weight_decay"], o["optim.weight_decay_end"]],
    "optim.clip_grad": lambda o: o["optim.clip_grad"],
    "optim.layerwise_decay": lambda o: o["optim.layerwise_decay"],
    "optim.patch_embed_lr_mult": lambda o: o["optim.patch_embed_lr_mult"],
    "optim.betas": lambda o: [o["optim.adamw_beta1"], o["optim.adamw_beta2"]],
    "train.batch_size": lambda o: o["train.batch_size_per_gpu"] * o.gpus,
    "train.iterations": lambda o: o.steps("optim.epochs"),
    # The official float16 needs a scaler of the loss; bfloat16 has the range of float32.
    "train.precision": lambda o: "bf16",  # noqa: ARG005 (as all others)
    "checkpoint.every": lambda o: _CHECKPOINTS * o["train.OFFICIAL_EPOCH_LENGTH"],
    "checkpoint.keep": lambda o: _CHECKPOINTS,  # noqa: ARG005 (as all others)
}
"""Our settings, each from the official ones."""


def _check(recipe: Mapping[str, Any], path: Path) -> None:
    """Have the types and ranges looked at now, and not when the recipe is used.

    Raises:
        ConfigError: one does not fit; the message names our setting.
    """
    try:
        load(PretrainConfig, None, (), flatten(recipe))
    except ConfigError as error:
        raise ConfigError(
            "\n".join(f"{path}: {line.removeprefix('defaults: ')}" for line in str(error).splitlines())
        ) from None
