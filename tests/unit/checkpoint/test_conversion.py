# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from opendino.checkpoint import conversion
from opendino.checkpoint.conversion import ConvertConfig, convert, features, fixed_image
from opendino.checkpoint.hub import load, load_backbone, open_model
from opendino.checkpoint.weights import read_config, save_weights
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer


def draw(**arguments):
    shape = {"img_size": 28, "patch_size": 14, "embed_dim": 64, "depth": 4, "num_heads": 1, "init_values": 1.0}
    model = VisionTransformer(**{**shape, **arguments})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    return save_weights(draw(), tmp_path / "ours")


def assert_nothing_left(tmp_path, *kept):
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("to", ["official", "hf", "timm"])
@pytest.mark.parametrize("registers", [0, 4])
def test_a_circle_through_every_format_changes_nothing_but_what_is_said(tmp_path, to, registers):
    source = draw(num_register_tokens=registers)
    save_weights(source, tmp_path / "ours")
    there = convert(tmp_path / "ours", tmp_path / "there", ConvertConfig(to))
    back = convert(tmp_path / "there", tmp_path / "back.pth", ConvertConfig("official"))
    assert there.difference == back.difference == 0
    assert there.size == (28, 28)
    assert (there.source_format, back.target_format) == ("opendino", "official")
    assert there.dropped == (("mask_token",) if to == "timm" else ())
    assert back.filled == (("mask_token",) if to == "timm" else ())
    state = load(tmp_path / "back.pth").state_dict()
    changed = {name for name, tensor in source.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == ({"mask_token", *(("cls_token", "pos_embed") if registers else ())} if to == "timm" else set())


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("to", ["official", "timm"])
def test_bare_files_of_a_shape_that_does_not_show(tmp_path, name, to):
    source = draw(embed_dim=96, num_heads=3, img_size=(28, 42))
    save_weights(source, tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / name, ConvertConfig(to))
    assert report.difference == 0
    with pytest.raises(ConversionError, match="say which grid it is by img_size="):
        convert(tmp_path / name, tmp_path / "again.pth", ConvertConfig("official"))
    given = ConvertConfig("official", num_heads=3, img_size=(28, 42))
    assert convert(tmp_path / name, tmp_path / "again.pth", given).difference == 0
    assert_nothing_left(tmp_path, "ours", name, "again.pth")


def test_the_targets_own_rule_is_measured_beside_the_sources(tmp_path):
    source = draw(img_size=56)
    source.input_spec = type(source.input_spec).default((28, 28), 3)
    save_weights(source, tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "hf", ConvertConfig("hf"))
    assert report.difference == 0
    by_hand = load(tmp_path / "ours", positions="hf")
    image = fixed_image(source)
    wanted, found = features(source, image), features(by_hand, image)
    largest = max(float((wanted[name] - found[name]).abs().max()) for name in ("cls", "patches"))
    assert report.own_rule_difference == largest > 1e-3


@pytest.mark.parametrize("name", ["out", "out.pth"])
def test_above_the_tolerance_nothing_is_left(tmp_path, folder, monkeypatch, name):
    honest = conversion.open_model

    def worn(path, **known):
        opened = honest(path, **known)
        if "partial" in str(path):
            with torch.no_grad():
                opened.model.norm.bias[0] += 1e-3
        return opened

    monkeypatch.setattr(conversion, "open_model", worn)
    with pytest.raises(
        ConversionError, match=r"differ from those of .* by 1\.0e-03, more than tolerance=1e-05; nothing"
    ):
        convert(folder, tmp_path / name, ConvertConfig("timm"))
    assert_nothing_left(tmp_path, "ours")
    convert(folder, tmp_path / name, ConvertConfig("timm", tolerance=1e-2))
    assert_nothing_left(tmp_path, "ours", name)


def test_features_that_are_no_numbers_are_refused(tmp_path):
    model = draw()
    with torch.no_grad():
        model.norm.bias[0] = torch.nan
    save_weights(model, tmp_path / "ours")
    with pytest.raises(ConversionError, match=r"not all numbers are finite in norm\.bias"):
        convert(tmp_path / "ours", tmp_path / "x.pth", ConvertConfig("official"))
    assert_nothing_left(tmp_path, "ours")


def test_names_of_classes_that_a_format_cannot_hold_are_told_of(tmp_path):
    source = LinearClassifier(draw(), classes=3, layers=1).eval()
    torch.save(source.state_dict(), tmp_path / "lc.pth")
    convert(tmp_path / "lc.pth", tmp_path / "hf", ConvertConfig("hf"))
    report = convert(tmp_path / "hf", tmp_path / "stand-ins.pth", ConvertConfig("official"))
    assert report.compared == ("features", "masked patches", "logits")
    assert report.notes == ()  # LABEL_0 and so on are no names
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "dog", "2": "owl"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    for to, target in (("official", "x.pth"), ("timm", "timm")):
        report = convert(tmp_path / "hf", tmp_path / target, ConvertConfig(to))
        assert report.notes == ("labels left out: this format does not hold the names of the 3 classes",)
    assert report.compared == ("features",)  # timm has neither a mask token nor this classifier
    again = convert(tmp_path / "hf", tmp_path / "hf2", ConvertConfig("hf"))
    assert (again.notes, load(tmp_path / "hf2").labels) == ((), ("cat", "dog", "owl"))


@pytest.mark.parametrize("layers", [1, 4])
def test_classifiers(tmp_path, layers):
    source = LinearClassifier(draw(), classes=3, layers=layers).eval()
    torch.save(source.state_dict(), tmp_path / "lc.pth")
    opened = open_model(tmp_path / "lc.pth")
    assert opened.format == "official"
    assert opened.model.layers == layers
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(opened.model(images), source(images))
    assert torch.equal(load_backbone(tmp_path / "lc.pth")(images), source.backbone(images))
    report = convert(tmp_path / "lc.pth", tmp_path / "hf", ConvertConfig("hf"))
    assert report.difference == 0
    again = load(tmp_path / "hf")
    if layers == 1:
        assert report.dropped == ()
        assert torch.equal(load(tmp_path / "hf", positions="official")(images), source(images))
        assert again.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    else:
        assert report.dropped == ("linear_head.weight", "linear_head.bias")
        assert isinstance(again, VisionTransformer)
    assert convert(tmp_path / "lc.pth", tmp_path / "again.safetensors", ConvertConfig("official")).difference == 0
    assert torch.equal(load(tmp_path / "again.safetensors")(images), source(images))
    with pytest.raises(ConfigError, match="a classifier is an official file, not a folder"):
        convert(tmp_path / "lc.pth", tmp_path / "folder", ConvertConfig("official"))


def test_what_a_folder_for_transformers_holds(tmp_path):
    save_weights(draw(num_register_tokens=4), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "hf", ConvertConfig("hf"))
    assert_nothing_left(tmp_path / "hf", "config.json", "model.safetensors", "preprocessor_config.json")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == "dinov2_with_registers"
    assert config["architectures"] == ["Dinov2WithRegistersModel"]
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_register_tokens"]) == (64, 4, 4)
    assert "encoder.layer.3.attention.attention.value.bias" in load_file(tmp_path / "hf" / "model.safetensors")


def test_names_that_do_not_fit_the_format(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"is a folder; give a name without \.pth"):
        convert(folder, tmp_path / "x.pth", ConvertConfig("hf"))
    with pytest.raises(CheckpointError, match="exists already"):
        convert(folder, folder, ConvertConfig("hf"))
    with pytest.raises(ConfigError, match="to='jax' is not known; choose one of official, hf, timm"):
        ConvertConfig("jax")
    with pytest.raises(ConfigError, match="tolerance=-1"):
        ConvertConfig("hf", tolerance=-1.0)


def test_a_width_that_transformers_5_cannot_say_is_written_and_said(tmp_path):
    source = draw(mlp_ratio=2.5)
    save_weights(source, tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "hf", ConvertConfig("hf"))
    assert report.difference == 0
    assert [note for note in report.notes if "fraction, which transformers 5 refuses" in note]
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["mlp_ratio"] == 2.5


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_another_rule_is_said_also_where_the_fixed_image_has_the_size_of_the_table(tmp_path, to):
    source = draw(img_size=98)  # the input's size is the table's
    save_weights(source, tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "there", ConvertConfig(to))
    assert (report.size, report.own_rule_size) == ((98, 98), (42, 42))
    images = torch.randn(1, 3, 42, 42)
    assert report.own_rule_difference > 1e-3
    # what opendino opens has the source's numbers wherever the format can say so
    assert torch.equal(load(tmp_path / "there")(images), source(images)) == (to == "hf")
    registers = draw(img_size=98, num_register_tokens=4, interpolate_antialias=True, interpolate_offset=0.0)
    save_weights(registers, tmp_path / "with registers")
    assert convert(tmp_path / "with registers", tmp_path / "x", ConvertConfig(to)).own_rule_difference == 0


def test_what_a_bare_file_does_not_say_is_said(tmp_path):
    save_weights(draw(num_heads=2, img_size=(28, 42)), tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "x.pth", ConvertConfig("official"))
    assert [n for n in report.notes if "does not say num_heads=2 and img_size=(28, 42): give it" in n]
    assert convert(tmp_path / "ours", tmp_path / "folder", ConvertConfig("official")).notes == ()


def test_old_names_of_files(tmp_path, folder):
    convert(folder, tmp_path / "x.bin", ConvertConfig("official"))
    assert (tmp_path / "x.bin").is_file()
    load(tmp_path / "x.bin")
    with pytest.raises(ConfigError, match=r"x\.ckpt: is no name of weights"):
        convert(folder, tmp_path / "x.ckpt", ConvertConfig("official"))


def test_what_neither_format_has_is_not_called_lost(tmp_path, folder):
    convert(folder, tmp_path / "timm", ConvertConfig("timm"))
    report = convert(tmp_path / "timm", tmp_path / "again", ConvertConfig("timm"))
    assert report.dropped == report.filled == ()


def test_masks_and_parts_are_compared_too(tmp_path, folder, monkeypatch):
    honest = conversion.open_model

    def worn(path, **known):
        opened = honest(path, **known)
        if "partial" in str(path):
            with torch.no_grad():
                opened.model.mask_token[0, 0] += 1  # the same for all channels would vanish in the norms
        return opened

    monkeypatch.setattr(conversion, "open_model", worn)
    with pytest.raises(ConversionError, match="nothing was written"):
        convert(folder, tmp_path / "x.pth", ConvertConfig("official"))
    convert(folder, tmp_path / "x.pth", ConvertConfig("timm"))  # has no mask token, and says so


def test_a_classifier_that_gets_lost_on_the_way_is_noticed(tmp_path, monkeypatch):
    torch.save(LinearClassifier(draw(), classes=3, layers=1).state_dict(), tmp_path / "lc.pth")
    honest = conversion.open_model

    def headless(path, **known):
        opened = honest(path, **known)
        return opened._replace(model=opened.backbone) if "partial" in str(path) else opened

    monkeypatch.setattr(conversion, "open_model", headless)
    with pytest.raises(ConversionError, match="other parts than the source: the classifier"):
        convert(tmp_path / "lc.pth", tmp_path / "hf", ConvertConfig("hf"))


def test_how_a_run_decoded_its_images_is_kept_or_said(tmp_path):
    save_weights(draw(), tmp_path / "ours", {"decoding": {"value_range": [0, 4095]}})
    assert convert(tmp_path / "ours", tmp_path / "copy", ConvertConfig("official")).notes == ()
    assert read_config(tmp_path / "copy")["provenance"]["decoding"] == {"value_range": [0, 4095]}
    report = convert(tmp_path / "copy", tmp_path / "hf", ConvertConfig("hf"))
    assert report.notes[-1].startswith("the run decoded its images with value_range=[0, 4095], which")
    save_weights(draw(), tmp_path / "usual", {"decoding": {"value_range": None, "orient": True}})
    assert convert(tmp_path / "usual", tmp_path / "usual_hf", ConvertConfig("hf")).notes == ()


def test_the_fixed_image_is_the_same_for_everybody():
    image = fixed_image(draw(in_chans=4))
    assert image.shape == (1, 4, 28, 28)
    assert float(image[0, 0, 0, 0]) == 0
    assert float(image[0, 1, 0, 0]) == pytest.approx(2**0.5 * 0.8414709848)
    large = fixed_image(draw(img_size=224))
    assert float(large.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("order", [("cls", "patches"), ("patches", "cls")])
def test_a_difference_that_is_no_number_is_not_passed_over(order):
    found = {"cls": torch.zeros(1, 2), "patches": torch.tensor([[0.0, torch.nan]])}
    wanted = {name: torch.zeros(1, 2) for name in found}
    assert math.isnan(conversion._largest(wanted, {name: found[name] for name in order}))
