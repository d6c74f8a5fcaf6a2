# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import jaxtyping
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import opendino
from opendino.checkpoint import catalog, hub
from opendino.checkpoint.catalog import Entry
from opendino.checkpoint.conversion import ConvertConfig, convert
from opendino.checkpoint.convert import FORMATS
from opendino.checkpoint.weights import save_weights
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.models.classifier import LinearClassifier
from opendino.models.input_spec import InputSpec
from opendino.models.presets import PRESETS
from opendino.models.vision_transformer import VisionTransformer

TINY = {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 4, "num_heads": 1, "init_values": 1.0}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 28 * 28).view(2, 3, 28, 28)


@pytest.fixture
def backbone():
    return VisionTransformer(**TINY).eval()


def assert_same(opened, backbone):
    torch.testing.assert_close(opened(IMAGES), backbone(IMAGES), rtol=0, atol=0)
    assert not opened.training


def test_a_run_and_its_weights_folder(tmp_path, backbone):
    save_weights(backbone, tmp_path / "run" / "weights")
    assert_same(hub.load(tmp_path / "run"), backbone)
    assert_same(opendino.load(str(tmp_path / "run" / "weights")), backbone)
    assert_same(hub.load(tmp_path / "run" / "weights" / "model.safetensors"), backbone)


def test_a_folder_that_knows_better_is_not_overruled_in_silence(tmp_path, backbone):
    with pytest.raises(ConfigError, match=r"num_heads is for bare files; this folder's config\.json says it"):
        hub.load(save_weights(backbone, tmp_path / "w"), num_heads=2)


def test_a_flat_published_file(tmp_path, backbone):
    torch.save(backbone.state_dict(), tmp_path / "flat.pth")
    assert_same(hub.load(tmp_path / "flat.pth"), backbone)


def test_a_bare_safetensors_file(tmp_path, backbone):
    save_file(dict(backbone.state_dict()), tmp_path / "x.safetensors")
    assert_same(hub.load(tmp_path / "x.safetensors"), backbone)


def chunked(state, size):
    names = {}
    for key, value in state.items():
        parts = key.split(".")
        names[key if parts[0] != "blocks" else ".".join(["blocks", str(int(parts[1]) // size), *parts[1:]])] = value
    return names


@pytest.mark.parametrize("around", ["", "module."])
def test_a_training_checkpoint_with_chunks_and_heads(tmp_path, backbone, around):
    teacher = {f"{around}backbone.{key}": value for key, value in chunked(backbone.state_dict(), 2).items()}
    assert f"{around}backbone.blocks.1.3.norm1.weight" in teacher
    teacher |= {f"{around}dino_head.mlp.0.weight": torch.zeros(2, 2), f"{around}ibot_head.mlp.0.weight": torch.zeros(2)}
    torch.save({"teacher": teacher}, tmp_path / "teacher.pth")
    assert_same(hub.load(tmp_path / "teacher.pth"), backbone)


def test_input_of_a_518_table(tmp_path):
    model = VisionTransformer(img_size=518, patch_size=14, embed_dim=64, depth=1, num_heads=1)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    opened = hub.load(tmp_path / "x.pth")
    assert opened.input_spec.size == (224, 224)
    assert opened.grid == (37, 37)


def test_heads_of_another_width_are_given(tmp_path):
    model = VisionTransformer(img_size=28, patch_size=7, embed_dim=48, depth=1, num_heads=3).eval()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(ConversionError, match="num_heads="):
        hub.load(tmp_path / "x.pth")
    assert_same(hub.load(tmp_path / "x.pth", num_heads=3), model)


def test_more_than_a_backbone_is_refused(tmp_path, backbone):
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({**state, "projector.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=r"x\.pth: unexpected projector\.weight beside the backbone 'backbone\.'"):
        hub.load(tmp_path / "x.pth")


def test_nothing_is_unpickled(tmp_path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (ran,))

    torch.save({"teacher": Trap()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="never unpickled"):
        hub.load(tmp_path / "x.pth")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half a zip"])
def test_a_damaged_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: .*again"):
        hub.load(tmp_path / name)


def test_a_file_cut_short(tmp_path, backbone):
    torch.save(backbone.state_dict(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"x.pth: .*again"):
        hub.load(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_vitb14", "get https://.*/dinov2_vitb14/dinov2_vitb14_pretrain.pth and put it there"),
        ("dinov2_vits14_reg", "/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"),
        ("vits14", r"architecture without weights; build it by opendino.create\('vits14'\)"),
        ("runs/nowhere", "runs/nowhere: no such file or folder; give a run folder"),
        ("nowhere/at-all", "nowhere/at-all: no such file .*; as a repository: nowhere/at-all: config.json is not in "),
        ("facebook/dinov2-basee", "did you mean facebook/dinov2-base"),
        ("facebook/dinov2-base", "run `hf download facebook/dinov2-base` where there is a network"),
        ("a/b/c", "a/b/c: no such file or folder; give a run folder"),
    ],
)
def test_names_that_are_no_files(tmp_path, monkeypatch, name, message):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=message):
        hub.load(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("facebook/dinov2-bse", "facebook/dinov2-base"),
        ("timm/vit_small_patch14_dinov2.lvd142", "vit_small_patch14_dinov2.lvd142m"),
    ],
)
def test_a_published_name_misspelt_is_said_before_any_network(tmp_path, monkeypatch, name, near):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub._fetch, "hub_folder", lambda repository: pytest.fail("the network was asked"))
    with pytest.raises(CheckpointError) as caught:
        hub.load(name)
    assert str(caught.value) == f"{name}: no such file or folder; did you mean {near}?"


def test_a_name_like_a_published_one_may_be_somebodys(tmp_path, monkeypatch):
    asked = []

    def fail(repository):
        asked.append(repository)
        raise CheckpointError("run `hf download`")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub._fetch, "hub_folder", fail)
    with pytest.raises(CheckpointError, match=r"^facebok/dinov2-base: .*; did you mean facebook/dinov2-base\?$"):
        hub.load("facebok/dinov2-base")
    assert asked == ["facebok/dinov2-base"]


def test_folders_and_files_that_are_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights; looked for"):
        hub.load(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(CheckpointError, match="has not written weights/ yet"):
        hub.load(tmp_path)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a weights file"):
        hub.load(picture)
    step = tmp_path / "checkpoints" / "step_00000010"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="give the run folder itself"):
        hub.load(step)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches and no network; a catalogue whose models are small enough to be written."""
    small = [
        Entry("dinov2_vits14", "official", "tiny", 1),
        Entry("dinov2_vits14_reg_lc", "official", "tiny_reg4", 1, (1, 4)),
        Entry("facebook/dinov2-small", "hf", "tiny", 1),
        Entry("facebook/dinov2-small-imagenet1k-1-layer", "hf", "tiny", 1, (1,)),
        Entry("vit_small_patch14_dinov2.lvd142m", "timm", "tiny", 1),
    ]
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setitem(PRESETS, "tiny_reg4", {**TINY, "num_register_tokens": 4})
    monkeypatch.setattr(hub, "IMAGENET_CLASSES", 10)
    monkeypatch.setattr(catalog, "CATALOG", {entry.name: entry for entry in small})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    return tmp_path


def forget(home, field, value=None):
    (path,) = home.rglob("config.json")
    config = json.loads(path.read_text())
    config.pop(field, None)
    path.write_text(json.dumps(config if value is None else {**config, field: value}))


def put_into_hub_cache(home, repository, folder):
    cached = home / "hf" / f"models--{repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots" / "abc")


def test_official_names(caches, backbone):
    torch.save(backbone.state_dict(), caches / "torch" / "checkpoints" / "dinov2_vits14_pretrain.pth")
    opened = hub.open_model("dinov2_vits14")
    assert_same(opened.model, backbone)
    assert opened.format == "official"
    with pytest.raises(ConfigError, match="layers=1 is for official names that end in _lc"):
        hub.load("dinov2_vits14", layers=1)


@pytest.mark.parametrize("layers", [None, 1, 4])
def test_official_classifiers(caches, layers):
    body = VisionTransformer(**TINY, num_register_tokens=4)
    home = caches / "torch" / "checkpoints"
    torch.save(body.state_dict(), home / "dinov2_vits14_reg4_pretrain.pth")
    heads = {n: torch.nn.Linear((n + 1) * 64, 10) for n in (1, 4)}
    torch.save(heads[1].state_dict(), home / "dinov2_vits14_reg4_linear_head.pth")
    torch.save(heads[4].state_dict(), home / "dinov2_vits14_reg4_linear4_head.pth")
    model = hub.load("dinov2_vits14_reg_lc", layers=layers)
    assert model.layers == (layers or 4)
    assert torch.equal(model.linear_head.weight, heads[layers or 4].weight)
    assert model(IMAGES).shape == (2, 10)
    with pytest.raises(ConfigError, match="layers=2"):
        hub.load("dinov2_vits14_reg_lc", layers=2)
    (home / "dinov2_vits14_reg4_linear4_head.pth").unlink()
    with pytest.raises(CheckpointError, match=r"dinov2_vits14_reg4_linear4_head\.pth is not in .*checkpoints"):
        hub.load("dinov2_vits14_reg_lc")


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ("hf", ["facebook/dinov2-small", "hf-hub:facebook/dinov2-small"]),
        ("timm", ["vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2", "vit_small_patch14_dinov2"]),
    ],
)
def test_names_on_the_hub_have_the_rule_of_their_library(caches, backbone, to, names):
    backbone.input_spec = InputSpec((21, 35), 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    convert(save_weights(backbone, caches / "ours"), caches / "there", ConvertConfig(to))
    put_into_hub_cache(
        caches, "facebook/dinov2-small" if to == "hf" else "timm/vit_small_patch14_dinov2.lvd142m", caches / "there"
    )
    if to == "hf":  # as published
        forget(caches / "hf", "pos_embed_resize")
    other = torch.randn(1, 3, 42, 21)
    for name in names:
        opened = hub.open_model(name)
        assert opened.format == to
        assert_same(opened.model, backbone)
        assert (opened.backbone.interpolate_offset, opened.backbone.interpolate_antialias) == (0.0, to == "timm")
        assert opened.backbone.input_spec.mean == (0.1, 0.2, 0.3)
        assert opened.backbone.input_spec.size == ((21, 35) if to == "hf" else (28, 28))
        assert not torch.allclose(opened.model(other), backbone(other), atol=1e-4)
        assert torch.equal(hub.load(name, positions="official")(other), backbone(other))
    with pytest.raises(ConfigError, match="positions='dino'"):
        hub.load(names[0], positions="dino")


def test_a_repository_that_is_not_in_the_catalogue(caches, backbone):
    convert(save_weights(backbone, caches / "ours"), caches / "there", ConvertConfig("hf"))
    put_into_hub_cache(caches, "someone/their-own", caches / "there")
    assert_same(hub.load("someone/their-own"), backbone)


def test_a_cached_file_cut_short_is_told_by_its_size(caches, backbone, monkeypatch):
    convert(save_weights(backbone, caches / "ours"), caches / "there", ConvertConfig("hf"))
    put_into_hub_cache(caches, "facebook/dinov2-small", caches / "there")
    monkeypatch.setattr(catalog, "CATALOG", {n: replace(e, parameters=10**9) for n, e in catalog.CATALOG.items()})
    with pytest.raises(CheckpointError, match="was cut short"):
        hub.load("facebook/dinov2-small")


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_bare_files_of_other_libraries(tmp_path, backbone, to):
    state = import_module(FORMATS[to]).from_official(backbone.state_dict()).state
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    for name in ("x.pth", "x.safetensors"):
        assert_same(hub.load(tmp_path / name), backbone)
        assert hub.open_model(tmp_path / name).format == to


def hf_folder(tmp_path, backbone):
    return convert(save_weights(backbone, tmp_path / "ours"), tmp_path / "hf", ConvertConfig("hf")).target


def test_a_folder_of_several_parts_and_an_old_one(tmp_path, backbone):
    folder = hf_folder(tmp_path, backbone)
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert_same(hub.load(folder), backbone)
    for part, own in parts.items():
        save_file({name: state[name] for name in own}, folder / part)
    places = {name: part for part, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "pytorch_model.bin").unlink()
    assert_same(hub.load(folder), backbone)


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_weights_that_lack_their_last_block_do_not_make_a_smaller_model(tmp_path, backbone, to):
    folder = convert(save_weights(backbone, tmp_path / "ours"), tmp_path / to, ConvertConfig(to)).target
    assert_same(hub.load(folder), backbone)
    last = {"hf": f"encoder.layer.{backbone.depth - 1}.", "timm": f"blocks.{backbone.depth - 1}."}[to]
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if last not in name}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(ConversionError, match=f"says depth {backbone.depth}, the weights {backbone.depth - 1}"):
        hub.load(folder)


def test_a_mask_token_that_the_file_lacks_is_said(tmp_path, backbone):
    folder = hf_folder(tmp_path, backbone)
    state = load_file(folder / "model.safetensors")
    del state["embeddings.mask_token"]
    save_file(state, folder / "model.safetensors")
    assert hub.open_model(folder).filled == ("mask_token",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.layer.2.norm1.bias"), r"lacks blocks\.2\.norm1\.bias"),
        (lambda s: s.update({"encoder.layer.0.extra": torch.ones(1)}), r"unexpected encoder\.layer\.0\.extra"),
        (lambda s: s.update({"layernorm.weight": torch.ones(3)}), r"norm\.weight is 3 where 64 is wanted"),
        (lambda s: s.pop("embeddings.cls_token"), r"no tensor 'cls_token'"),
    ],
)
def test_a_folder_whose_names_do_not_fit(tmp_path, backbone, change, message):
    folder = hf_folder(tmp_path, backbone)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ConversionError, match=message):
        hub.load(folder)


def test_folders_of_other_models_and_broken_ones(tmp_path, backbone):
    folder = hf_folder(tmp_path, backbone)
    config = folder / "config.json"
    good = config.read_text()
    config.write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match="describes vit, not a DINOv2 model"):
        hub.load(folder)
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is no JSON"):
        hub.load(folder)
    config.write_text(good)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read .* again"):
        hub.load(folder)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"linear_head.weight": torch.ones(3, 100), "linear_head.bias": torch.ones(3)}, "has 100 columns"),
        ({"linear_head.weight": torch.ones(3, 64), "linear_head.bias": torch.ones(3)}, "has 64 columns"),
        ({"linear_head.weight": torch.ones(3, 128), "linear_head.bias": torch.ones(4)}, r"linear_head\.bias \(4,\)"),
        ({"linear_head.weight": torch.ones(3, 128)}, "wanted a weight"),
    ],
)
def test_a_classifier_that_does_not_fit(tmp_path, backbone, head, message):
    torch.save(backbone.state_dict() | head, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=message):
        hub.load(tmp_path / "x.pth")


@pytest.mark.parametrize("change", [{"num_register_tokens": 4}, {"depth": 3}, {"qkv_bias": False}, {"mlp_ratio": 2.0}])
def test_a_published_name_opens_its_own_model_alone(caches, change):
    other = VisionTransformer(**{**TINY, **change})
    torch.save(other.state_dict(), caches / "torch" / "checkpoints" / "dinov2_vits14_pretrain.pth")
    argument, value = next(iter(change.items()))
    with pytest.raises(ConversionError, match=rf"dinov2_vits14 has .*{argument} .*, the file {value}.*in its place"):
        hub.load("dinov2_vits14")


def test_a_head_over_other_blocks_than_its_name_says(caches):
    home = caches / "torch" / "checkpoints"
    torch.save(VisionTransformer(**TINY, num_register_tokens=4).state_dict(), home / "dinov2_vits14_reg4_pretrain.pth")
    torch.save(torch.nn.Linear(5 * 64, 10).state_dict(), home / "dinov2_vits14_reg4_linear_head.pth")
    with pytest.raises(ConversionError, match=r"classifier of 10 classes over 1 blocks, the file .* 10 .* 4 blocks"):
        hub.load("dinov2_vits14_reg_lc", layers=1)
    torch.save(torch.nn.Linear(2 * 64, 9).state_dict(), home / "dinov2_vits14_reg4_linear_head.pth")
    with pytest.raises(ConversionError, match="10 classes over 1 blocks, the file has a classifier of 9 classes"):
        hub.load("dinov2_vits14_reg_lc", layers=1)


@pytest.mark.parametrize("with_head", [True, False])
def test_a_repository_has_the_classifier_that_its_name_says(caches, backbone, with_head):
    model = LinearClassifier(backbone, 10, 1) if with_head else backbone
    torch.save(model.state_dict(), caches / "x.pth")
    names = ["facebook/dinov2-small-imagenet1k-1-layer", "facebook/dinov2-small"]
    for name in names:
        convert(caches / "x.pth", caches / "there", ConvertConfig("hf"))
        put_into_hub_cache(caches, name, caches / "there")
    assert type(hub.load(names[not with_head])) is type(model)
    with pytest.raises(ConversionError, match="another file stands in its place"):
        hub.load(names[with_head])


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_no_name(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no check of types
    with pytest.raises(ConfigError, match="names nothing; give a run folder"):
        hub.load(name)


def test_arguments_that_do_not_exist(tmp_path, backbone):
    torch.save(backbone.state_dict(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"position is no argument; there are .*did you mean positions"):
        hub.load(tmp_path / "x.pth", position="hf")
    assert hub.load(tmp_path / "x.pth", num_heads=2, drop_path_rate=0.1).num_heads == 2


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_the_caller_must_not_contradict_the_config(tmp_path, backbone, to):
    folder = convert(save_weights(backbone, tmp_path / "ours"), tmp_path / to, ConvertConfig(to)).target
    with pytest.raises(ConfigError, match=r"num_heads=2 was given, and config\.json says 1"):
        hub.load(folder, num_heads=2)
    with pytest.raises(ConfigError, match=r"img_size=56 was given, and config\.json says"):
        hub.load(folder, img_size=56)
    assert_same(hub.load(folder, num_heads=1, img_size=(28, 28)), backbone)


def test_heads_that_no_file_states_are_those_of_the_library(tmp_path):
    model = VisionTransformer(**{**TINY, "embed_dim": 96, "num_heads": 12}).eval()
    folder = hf_folder(tmp_path, model)
    forget(folder, "num_attention_heads")
    assert_same(hub.load(folder), model)
    assert hub.load(folder, num_heads=3).num_heads == 3


@pytest.mark.parametrize("rule", ["official", "timm", "hf"])
def test_the_rule_that_the_face_wrote_is_followed(tmp_path, backbone, rule):
    folder = hf_folder(tmp_path, backbone)
    forget(folder, "pos_embed_resize", rule)
    opened, wanted = hub.load(folder), hub.load(folder, positions=rule)
    other = torch.randn(1, 3, 42, 21)
    assert torch.equal(opened(other), wanted(other))
    assert hub.load(folder, positions="timm").interpolate_antialias
    forget(folder, "pos_embed_resize", "dino")
    with pytest.raises(ConversionError, match="pos_embed_resize='dino'"):
        hub.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch_size", 14, "patch_size 14, the weights 7"),
        ("use_swiglu_ffn", True, "ffn_layer swiglu, the weights mlp"),
        ("mlp_ratio", 3, "ffn_width 192, the weights 256"),
        ("qkv_bias", False, "qkv_bias False, the weights True"),
        ("num_channels", 4, "in_chans 4, the weights 3"),
    ],
)
def test_a_config_that_claims_what_the_weights_are_not(tmp_path, backbone, field, value, message):
    folder = hf_folder(tmp_path, backbone)
    forget(folder, field, value)
    with pytest.raises(ConversionError, match=message):
        hub.load(folder)


def test_registers_under_the_model_type_without_them(tmp_path):
    folder = hf_folder(tmp_path, VisionTransformer(**TINY, num_register_tokens=4))
    forget(folder, "num_register_tokens")
    forget(folder, "model_type", "dinov2")
    with pytest.raises(ConversionError, match="num_register_tokens 0, the weights 4"):
        hub.load(folder)


def test_a_classifier_that_the_config_promises(tmp_path, backbone):
    folder = hf_folder(tmp_path, backbone)
    forget(folder, "architectures", ["Dinov2ForImageClassification"])
    with pytest.raises(ConversionError, match="says Dinov2ForImageClassification, and the weights hold no classifier"):
        hub.load(folder)


def test_a_mistyped_file_in_a_folder_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"^nowhere/x\.pth: no such file or folder; give a run folder"):
        hub.load("nowhere/x.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({3: torch.ones(2)}, "the name 3 is a int; wanted text"),
        ({"cls_token": torch.tensor(1.0)}, "cls_token has 0 axes where 3 are wanted"),
        ({"cls_token": torch.ones(64)}, "cls_token has 1 axes"),
        ({"blocks.0.mlp.fc1.weight": torch.ones(4)}, r"blocks\.0\.mlp\.fc1\.weight has 1 axes"),
        ({"blocks.0.attn.qkv.weight": torch.tensor(1.0)}, r"blocks\.0\.attn\.qkv\.weight is a single number"),
        ({"cls_token": torch.ones(1, 1, 0)}, "cls_token is empty"),
        ({"norm.bias": torch.ones(64, dtype=torch.int8)}, r"norm\.bias \(int8\)"),
        ({"norm.bias": torch.full((64,), torch.nan)}, r"not all numbers are finite in norm\.bias"),
    ],
)
def test_malformed_state_dicts(tmp_path, backbone, state, message):
    torch.save({**backbone.state_dict(), **state}, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=message):
        hub.load(tmp_path / "x.pth")


def test_a_classifier_of_whole_numbers_is_refused(tmp_path, backbone):
    head = {"linear_head.weight": torch.ones(3, 128, dtype=torch.int8), "linear_head.bias": torch.ones(3)}
    torch.save(backbone.state_dict() | head, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=r"linear_head\.weight \(int8\)"):
        hub.load(tmp_path / "x.pth")
