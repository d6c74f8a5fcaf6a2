# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError, TrainingError
from opendino.eval import finetune
from opendino.eval._data import LabelledConfig, open_pair
from opendino.eval._features import FeatureConfig
from opendino.eval.finetune import FinetuneConfig, TuneConfig
from opendino.models.vision_transformer import VisionTransformer

COLOURS = {"blue": (40, 60, 200), "red": (200, 50, 40)}


@pytest.fixture
def home(tmp_path):
    rng = np.random.default_rng(0)
    for part, each in (("train", 8), ("val", 3)):
        for name, colour in COLOURS.items():
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(each):
                pixels = np.clip(colour + rng.normal(0, 15, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, init_values=0.5)


def config(home, mode="full", **tune):
    fast = {"epochs": 4, "batch_size": 8, "lr": 1e-3, "warmup": 1}
    return FinetuneConfig(
        LabelledConfig(str(home / "train"), str(home / "val")),
        TuneConfig(mode, **{**fast, **tune}),
        FeatureConfig(device="cpu", size=16),
    )


def test_what_each_mode_trains(home, backbone):
    pair = open_pair(LabelledConfig(str(home / "train"), str(home / "val")))

    def trained(mode):
        model = finetune.prepare(backbone, config(home, mode, blocks=1), pair)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    head = {"linear_head.weight", "linear_head.bias"}
    assert trained("lora") == head | {
        f"backbone.blocks.{i}.attn.{layer}.{part}"
        for i in (0, 1)
        for layer in ("qkv", "proj")
        for part in ("down", "up")
    }
    last = trained("last")
    assert "backbone.norm.weight" in last
    assert any("blocks.1." in name for name in last)
    assert not any("blocks.0." in name or "embed" in name for name in last)
    assert "backbone.patch_embed.proj.weight" in trained("full")
    with pytest.raises(ConfigError, match=r"finetune\.blocks = 3: the backbone has 2"):
        finetune.prepare(backbone, config(home, "last", blocks=3), pair)


def test_neither_norms_nor_biases_decay_and_the_head_learns_faster(home, backbone):
    settings = config(home, head_lr=10.0, layerwise_decay=0.5)
    pair = open_pair(settings.data)
    model = finetune.prepare(backbone, settings, pair)
    names = {parameter: name for name, parameter in model.named_parameters()}
    factors = {
        names[parameter]: (group["lr_multiplier"], group["wd_multiplier"])
        for group in finetune.groups_of(model, settings.finetune)
        for parameter in group["params"]
    }
    assert factors.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert factors["linear_head.weight"] == (10.0, 1.0)
    assert factors["linear_head.bias"] == (10.0, 0.0)
    assert factors["backbone.norm.weight"] == (1.0, 0.0)
    assert factors["backbone.blocks.1.mlp.fc1.weight"] == (0.5, 1.0)
    assert factors["backbone.blocks.0.mlp.fc1.bias"] == (0.25, 0.0)
    assert factors["backbone.patch_embed.proj.weight"] == (0.125, 1.0)


def test_a_run_that_went_astray_is_not_measured(home, backbone):
    with pytest.raises(TrainingError, match=r"the loss of step 7 is nan; use a smaller finetune\.lr"):
        finetune.run(backbone, config(home, lr=1e30, warmup=0), out=home / "out")
    assert not (home / "out" / "model").exists()


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_model_that_is_written_opens_in_both_libraries(home, backbone, mode):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from opendino import hf
    from opendino.checkpoint.hub import load

    results = finetune.run(backbone, config(home, mode), out=home / "out")
    assert results.figures["top1"] == 100
    folder = home / "out" / "model"
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "blue", "1": "red"}
    x = torch.randn(2, 3, 16, 16)
    wanted = load(folder)(x).detach()
    assert wanted.shape == (2, 2)
    for library in (hf, transformers):
        model = library.Dinov2ForImageClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(x).logits, wanted, rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="exists already"):
        finetune.run(backbone, config(home, mode), out=home / "out")


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match="have to be positive"):
        TuneConfig(epochs=0)
    with pytest.raises(ConfigError, match="label_smoothing from 0"):
        TuneConfig(label_smoothing=1.0)
    for wrong in ({"weight_decay": -0.1}, {"layerwise_decay": 1.5}, {"lr": float("inf")}):
        with pytest.raises(ConfigError, match=rf"finetune\.{next(iter(wrong))} = .* is out of its range"):
            TuneConfig(**wrong)
