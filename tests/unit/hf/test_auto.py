# SPDX-License-Identifier: Apache-2.0
"""Which class the Auto classes choose, for our model types and for others."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from opendino import hf
from opendino.hf.auto import CONFIGS, MODELS

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}


@pytest.fixture(params=list(CONFIGS))
def folder(request, tmp_path):
    model = MODELS["AutoModel"][request.param](CONFIGS[request.param](**TINY))
    model.save_pretrained(tmp_path)
    hf.Dinov2ImageProcessor().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", list(MODELS))
def test_our_model_types_give_our_classes(name, folder):
    auto = getattr(hf, name)
    model = auto.from_pretrained(folder)
    kind = model.config.model_type
    assert type(model) is MODELS[name][kind]
    assert type(hf.AutoConfig.from_pretrained(folder)) is CONFIGS[kind]
    assert type(hf.AutoImageProcessor.from_pretrained(folder)) is hf.Dinov2ImageProcessor
    again = auto.from_config(model.config)
    assert type(again) is type(model)


def test_arguments_reach_the_config(folder):
    model = hf.AutoModel.from_pretrained(folder, pos_embed_resize="official", dtype=torch.bfloat16)
    assert (model.config.pos_embed_resize, model.dtype) == ("official", torch.bfloat16)
    backbone = hf.AutoBackbone.from_pretrained(folder, out_features=["stem", "stage1"])
    assert len(backbone(torch.randn(1, 3, 56, 56)).feature_maps) == 2


def test_a_config_of_transformers_does_as_well(folder):
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert type(theirs).__module__.startswith("transformers.")
    assert type(hf.AutoModel.from_config(theirs)) is MODELS["AutoModel"][theirs.model_type]
    assert type(hf.AutoModel.from_pretrained(folder, config=theirs)) is MODELS["AutoModel"][theirs.model_type]


def test_new_configs_by_name():
    config = hf.AutoConfig.for_model("dinov2_with_registers", num_register_tokens=2)
    assert type(config) is hf.Dinov2WithRegistersConfig
    assert type(hf.AutoConfig.for_model("vit")) is transformers.ViTConfig


def test_other_model_types_fall_through(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert type(hf.AutoConfig.from_pretrained(tmp_path)) is transformers.ViTConfig
    assert type(hf.AutoModel.from_pretrained(tmp_path)) is transformers.ViTModel
    assert type(hf.AutoModel.from_config(config)) is transformers.ViTModel
    settings = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 8}, "crop_size": 8}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert type(hf.AutoImageProcessor.from_pretrained(tmp_path)).__module__.startswith("transformers.")


def test_an_adapter_names_its_base_model(folder, tmp_path_factory):
    adapter = tmp_path_factory.mktemp("adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    assert hf.auto._model_type(adapter, {}) == kind
    assert hf.AutoConfig.from_pretrained(adapter).hidden_size == 32


def put_into_cache(cache, repository, folder):
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    (home / "snapshots").mkdir()
    folder.rename(home / "snapshots" / "abc")


def test_a_published_name_comes_from_the_cache(tmp_path):
    """In a process of its own: the place of the cache is read when huggingface_hub is imported."""
    source = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**TINY))
    source.save_pretrained(tmp_path / "there")
    hf.Dinov2ImageProcessor(size=64, crop_size=56).save_pretrained(tmp_path / "there")
    put_into_cache(tmp_path / "cache", "facebook/dinov2-with-registers-small", tmp_path / "there")
    code = """
import sys, opendino
from opendino import hf
from opendino.errors import CheckpointError
name = "facebook/dinov2-with-registers-small"
weights = hf.AutoModel.from_pretrained(name).layernorm.weight.detach()
print(float(weights.sum()), hf.AutoConfig.from_pretrained(name).model_type)
print(hf.AutoImageProcessor.from_pretrained(name).crop_size, hf.AutoBackbone.from_pretrained(name).channels)
for ask in (hf.AutoModel, hf.AutoConfig, hf.AutoImageProcessor, hf.Dinov2Model):
    try:
        ask.from_pretrained("facebook/dinov2-base")
    except (OSError, CheckpointError) as error:
        assert isinstance(error, OSError) and isinstance(error, CheckpointError), error
        print(str(error).split(" and cannot")[0], "run `hf download facebook/dinov2-base`" in str(error))
"""
    places = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **places})
    assert run.returncode == 0, run.stderr
    where = f"is not in {tmp_path}/cache True"
    assert run.stdout.splitlines() == [
        f"{float(source.layernorm.weight.detach().sum())} dinov2_with_registers",
        "{'height': 56, 'width': 56} [32]",
        f"facebook/dinov2-base: config.json {where}",
        f"facebook/dinov2-base: config.json {where}",
        f"facebook/dinov2-base: preprocessor_config.json {where}",
        f"facebook/dinov2-base: config.json {where}",
    ]
