# SPDX-License-Identifier: Apache-2.0
"""Weights through our converters, against transformers' and timm's own models, each under its own rule of positions.

Random weights, float32 on the CPU, 1e-5. timm needs a torchvision that imports beside torch: see
docs/how-to/checkpoints.md for an environment in which these tests run instead of being skipped.
"""

import pytest
import torch

from opendino.checkpoint.conversion import ConvertConfig, convert
from opendino.checkpoint.convert import hf, timm
from opendino.checkpoint.hub import load
from opendino.checkpoint.weights import save_weights
from opendino.models.classifier import LinearClassifier
from opendino.models.presets import create

TOLERANCE = {"atol": 1e-5, "rtol": 0}
SIZES = [(98, 98), (224, 224), (336, 336), (518, 518), (546, 546), (602, 602), (224, 336)]
KINDS = {
    "plain": ("vits14", {"embed_dim": 128, "depth": 2, "num_heads": 2}),
    "registers": ("vits14_reg4", {"embed_dim": 128, "depth": 2, "num_heads": 2}),
    "gated": ("vitg14", {"embed_dim": 128, "depth": 2, "num_heads": 2}),
    "gated-registers": ("vitg14_reg4", {"embed_dim": 128, "depth": 2, "num_heads": 2}),
}


def randomise(model):
    """Nothing is zero, one or symmetric, so that a wrong order or a forgotten part shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around, width = (1.0, 0.3) if name.endswith("gamma") or "norm" in name else (0.0, 0.05)
            parameter.copy_(around + width * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def draw(kind):
    preset, shape = KINDS[kind]
    return randomise(create(preset, **shape))


def tokens(features):
    parts = [features["x_norm_clstoken"][:, None], features["x_norm_regtokens"], features["x_norm_patchtokens"]]
    return torch.cat(parts, dim=1)


def assert_equal(ours, theirs):
    assert ours.std() > 0.5, "weights too tame to show a difference"
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is the oracle here")


@pytest.fixture(scope="module")
def timm_library():
    return pytest.importorskip(
        "timm",
        reason="timm is the oracle here; it needs a torchvision that imports beside this torch",
        exc_type=ImportError,
    )


@pytest.fixture(scope="module")
def as_hf(transformers, tmp_path_factory):
    """Kind -> (our model, transformers' model that opened the folder we wrote, that folder)."""

    def write(kind):
        home = tmp_path_factory.mktemp(kind)
        ours = draw(kind)
        convert(save_weights(ours, home / "ours"), home / "hf", ConvertConfig("hf"))
        return ours, transformers.AutoModel.from_pretrained(home / "hf").eval(), home / "hf"

    return {kind: write(kind) for kind in KINDS}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_what_we_write_and_we_open_it_again(as_hf, kind):
    source, theirs, folder = as_hf[kind]
    ours = load(folder, positions="hf")  # the folder says that the source follows the official rule
    for name, tensor in source.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        assert_equal(tokens(ours.forward_features(x)), theirs(x).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "registers"])
def test_a_very_large_image(as_hf, kind):
    _, theirs, folder = as_hf[kind]
    x = torch.randn(1, 3, 1092, 1092)
    assert_equal(tokens(load(folder, positions="hf").forward_features(x)), theirs(x).last_hidden_state)


@torch.no_grad()
def test_masks_come_along(as_hf):
    _, theirs, folder = as_hf["plain"]
    x, masks = torch.randn(2, 3, 224, 224), torch.rand(2, 256) > 0.6
    ours = load(folder, positions="hf").forward_features(x, masks)
    assert_equal(tokens(ours), theirs(x, bool_masked_pos=masks).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("in_memory", [False, True], ids=["hub layout", "memory layout"])
@pytest.mark.parametrize("kind", KINDS)
def test_we_open_what_transformers_writes(as_hf, tmp_path, kind, in_memory):
    _, theirs, _ = as_hf[kind]
    theirs.save_pretrained(tmp_path / "theirs", **({"save_original_format": False} if in_memory else {}))
    x = torch.randn(1, 3, 224, 336)
    assert_equal(tokens(load(tmp_path / "theirs", positions="hf").forward_features(x)), theirs(x).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_have_exactly_transformers_names(as_hf, kind):
    source, theirs, _ = as_hf[kind]
    state = theirs.state_dict()
    in_memory = any("q_proj" in name for name in state)  # transformers 4 holds the hub's layout
    converted = hf.from_official(source.state_dict(), in_memory=in_memory).state
    assert converted.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(converted[name], tensor), name


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "registers"])
def test_classifier(transformers, tmp_path, kind):
    ours = randomise(LinearClassifier(draw(kind), classes=5, layers=1, labels=["a", "b", "c", "d", "e"]))
    torch.save(ours.state_dict(), tmp_path / "lc.pth")
    convert(tmp_path / "lc.pth", tmp_path / "hf", ConvertConfig("hf"))
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.num_labels == 5
    x = torch.randn(2, 3, 224, 336)
    again = load(tmp_path / "hf", positions="hf")
    assert again.labels == tuple(f"LABEL_{i}" for i in range(5))
    assert_equal(again(x), theirs(x).logits)
    theirs.config.id2label = dict(enumerate(ours.labels))
    theirs.save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs", positions="hf")
    assert back.labels == ours.labels
    torch.testing.assert_close(back(x), again(x), **TOLERANCE)


@torch.no_grad()
def test_a_model_of_the_published_size(transformers, tmp_path):
    ours = randomise(create("vits14"))
    convert(save_weights(ours, tmp_path / "ours"), tmp_path / "hf", ConvertConfig("hf"))
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    x = torch.randn(1, 3, 224, 224)
    assert_equal(tokens(load(tmp_path / "hf", positions="hf").forward_features(x)), theirs(x).last_hidden_state)


def test_preprocessor_is_read_by_transformers(transformers, as_hf):
    folder = as_hf["plain"][2]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    spec = load(folder).input_spec
    assert type(processor).__name__.startswith("BitImageProcessor")
    assert dict(processor.crop_size) == {"height": 224, "width": 224}
    assert dict(processor.size) == {"shortest_edge": 256}
    assert tuple(processor.image_mean) == spec.mean
    assert tuple(processor.image_std) == spec.std
    assert spec.size == (224, 224)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_timm_opens_what_we_write_and_we_open_it_again(timm_library, tmp_path, kind):
    source = draw(kind)
    convert(save_weights(source, tmp_path / "ours"), tmp_path / "timm", ConvertConfig("timm"))
    opened = timm_library.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, dynamic_img_size=True)
    ours = load(tmp_path / "timm")
    for size in [*SIZES, (1092, 1092)]:
        x = torch.randn(1, 3, *size)
        assert_equal(tokens(ours.forward_features(x)), opened.eval().forward_features(x))
    again = timm.from_official(source.state_dict()).state
    assert again.keys() == opened.state_dict().keys()


@torch.no_grad()
def test_timm_models_of_any_shape(timm_library, tmp_path):
    shape = {"patch_size": 7, "embed_dim": 96, "depth": 2, "num_heads": 3, "in_chans": 4, "img_size": (28, 42)}
    for number, extra in enumerate(
        ({}, {"init_values": 0.0}, {"num_register_tokens": 2, "qkv_bias": False, "mlp_ratio": 3.0})
    ):
        source = randomise(create("vit_custom", **shape, **{"init_values": 1.0, **extra}))
        home = tmp_path / str(number)
        convert(save_weights(source, home / "ours"), home / "timm", ConvertConfig("timm"))
        opened = timm_library.create_model(f"local-dir:{home / 'timm'}", pretrained=True, dynamic_img_size=True)
        x = torch.randn(2, 4, 56, 35)
        assert_equal(tokens(load(home / "timm").forward_features(x)), opened.eval().forward_features(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_we_open_what_timm_holds(timm_library, tmp_path, name):
    theirs = randomise(timm_library.create_model(name, dynamic_img_size=True))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = load(tmp_path / "timm.pth")
    x = torch.randn(1, 3, 224, 224)
    assert_equal(tokens(ours.forward_features(x)), theirs.forward_features(x))
