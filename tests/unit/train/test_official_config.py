# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml

from opendino.config import leaves, load
from opendino.errors import ConfigError
from opendino.optim.schedules import steps_of
from opendino.train.config import PretrainConfig
from opendino.train.official_config import DEFAULTS, import_official

RECIPES = Path(__file__).parents[3] / "configs" / "pretrain"

# The three published files as far as they differ from the official defaults (facts of the official repository).
SHORT = {"dino": {"head_n_prototypes": 65536}, "train": {"batch_size_per_gpu": 64}, "student": {"block_chunks": 4}}
LONG = {
    "dino": {"head_n_prototypes": 131072, "head_bottleneck_dim": 384},
    "ibot": {"separate_head": True, "head_n_prototypes": 131072},
    "train": {"batch_size_per_gpu": 32, "dataset_path": "ImageNet22k", "centering": "sinkhorn_knopp"},
    "student": {
        "arch": "vit_large", "patch_size": 14, "drop_path_rate": 0.4, "ffn_layer": "swiglufused", "block_chunks": 4,
    },
    "teacher": {"momentum_teacher": 0.994},
    "optim": {
        "epochs": 500, "weight_decay_end": 0.2, "base_lr": 2.0e-04, "warmup_epochs": 80, "layerwise_decay": 1.0,
    },
    "crops": {"local_crops_size": 98},
}  # fmt: skip
GIANT = LONG | {
    "student": LONG["student"] | {"arch": "vit_giant2"},
    "train": LONG["train"] | {"batch_size_per_gpu": 12},
}
LENGTHS = ("teacher.temp_warmup", "optim.warmup", "optim.freeze_last_layer")


def written(tmp_path, content):
    path = tmp_path / "official.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def meaning(config):
    """Settings without the two ways to say one thing: lengths in steps, the student as arguments."""
    found = {key: value for key, value in leaves(config).items() if not key.startswith("student.")}
    found |= {key: steps_of(found[key], config.train.iterations, key) for key in LENGTHS}
    arguments = config.student.arguments()
    return found | {f"student.{key}": value for key, value in arguments.items()}


@pytest.mark.parametrize(
    ("content", "gpus", "recipe"),
    [(SHORT, 32, "vitl16_in1k_short"), (LONG, 96, "vitl14_in22k_long"), (GIANT, 256, "vitg14_in22k_long")],
)
def test_the_published_files_come_to_our_recipes(tmp_path, content, gpus, recipe):
    imported = import_official(written(tmp_path, content), gpus)
    (tmp_path / "ours.yaml").write_text(imported.text("from official.yaml"))
    found = meaning(load(PretrainConfig, tmp_path / "ours.yaml"))
    wanted = meaning(load(PretrainConfig, RECIPES / f"{recipe}.yaml"))
    for defaults in (found, wanted):  # what one preset says and another leaves to the model's own defaults
        defaults.setdefault("student.ffn_layer", "mlp")
        defaults.setdefault("student.drop_path_rate", 0.0)
    assert found == wanted
    assert "student.block_chunks" in imported.passed_over


def test_every_translated_key_matters(tmp_path):
    """A value that differs from the default changes the recipe, whichever key it is of."""
    plain = import_official(written(tmp_path, {}), 8).recipe
    for key, value in DEFAULTS.items():
        if key == "optim.scaling_rule":
            continue
        group, _, name = key.partition(".")
        other = {
            "student.arch": "vit_base", "student.ffn_layer": "swiglu", "train.centering": "sinkhorn_knopp",
            "student.patch_size": 14,
        }.get(key)  # fmt: skip
        if other is None:
            other = not value if isinstance(value, bool) else [0.2, 0.3] if isinstance(value, list) else value + 1
            other = value / 2 if isinstance(value, float) else other
        assert import_official(written(tmp_path, {group: {name: other}}), 8).recipe != plain, key


def test_what_means_nothing_here_is_said_with_a_reason(tmp_path):
    content = {
        "MODEL": {"WEIGHTS": "vits14.pth"},
        "student": {"pretrained_weights": ""},
        "compute_precision": {"grad_scaler": True, "student": {"backbone": {"sharding_strategy": "NO_SHARD"}}},
        "evaluation": {"eval_period_iterations": 12500},
        "train": {"saveckp_freq": 20},
    }
    imported = import_official(written(tmp_path, content), 1)
    assert "parallel.mode" in imported.passed_over["compute_precision.student.backbone.sharding_strategy"]
    assert imported.passed_over["train.saveckp_freq"] == "the official code does not read it"
    assert len(imported.passed_over) == 5
    assert "# passed over: MODEL.WEIGHTS: " in imported.text("title")


def test_registers_and_other_shapes_are_kept(tmp_path):
    content = {"student": {"arch": "vit_base_memeff", "patch_size": 8, "num_register_tokens": 4}}
    student = load(PretrainConfig, None, (), flat(import_official(written(tmp_path, content), 1).recipe)).student
    assert student.preset == "vit_custom"
    model = student.arguments()
    assert (model["num_register_tokens"], model["patch_size"], model["drop_path_rate"]) == (4, 8, 0.3)
    assert model.get("embed_dim", 768) == 768


def flat(recipe):
    from opendino.config import flatten

    return flatten(recipe)


@pytest.mark.parametrize(
    ("content", "gpus", "message"),
    [
        ({"student": {"preset": "vits14"}, "seed": 1}, 1, "is a recipe of opendino already; opendino config check "),
        ({"dino": {"head_prototypes": 3}}, 1, r"dino\.head_prototypes: no keys of an official DINOv2"),
        ({}, 0, "gpus = 0: give the number of GPUs"),
        ({"student": {"arch": "convnext"}}, 1, r"student\.arch = convnext is not known"),
        ({"optim": {"scaling_rule": "linear"}}, 1, "there is sqrt_wrt_1024 alone"),
        ({"dino": {"head_n_prototypes": "many"}}, 1, r"official\.yaml: dino\.prototypes = 'many'"),
        ("[1, 2", 1, "not valid YAML"),
    ],
)
def test_what_cannot_be_translated_is_said(tmp_path, content, gpus, message):
    with pytest.raises(ConfigError, match=message):
        import_official(written(tmp_path, content), gpus)
