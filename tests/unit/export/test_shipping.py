# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from PIL import Image

from opendino.checkpoint.hub import load
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.export import program, shipping
from opendino.export.graph import Graph
from opendino.export.shipping import Difference, ExportConfig, compare, export, told, trials
from opendino.models.vision_transformer import VisionTransformer


def backbone(**settings):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return VisionTransformer(**(sizes | settings)).eval()


def test_a_wrong_or_missing_output_is_seen():
    graph, images = Graph(backbone()), torch.randn(1, 3, 16, 16)
    exact = lambda x: dict(zip(graph.outputs, graph(x), strict=True))  # noqa: E731
    assert compare(graph, exact, images).largest == 0
    off = lambda x: exact(x) | {"patches": exact(x)["patches"] + 0.25}  # noqa: E731
    assert compare(graph, off, images)[1:3] == ("patches", pytest.approx(0.25, abs=1e-5))
    assert compare(graph, lambda x: {"cls": exact(x)["cls"]}, images).largest == float("inf")
    nan = lambda x: exact(x) | {"cls": exact(x)["cls"] * float("nan")}  # noqa: E731
    assert compare(graph, nan, images)[1:3] == ("cls", float("inf"))


def test_what_is_promised_is_tried(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    model = backbone()
    shapes = lambda **s: {tuple(one.images.shape) for one in trials(model, (16, 16), ExportConfig(**s))}  # noqa: E731
    everything = shapes(dynamic="all", images=str(tmp_path))
    assert {one[0] for one in everything} == {1, 3}
    assert {one[2:] for one in everything} == {(16, 16), (24, 36), (8, 12)}
    assert {one[2:] for one in shapes(dynamic="batch")} == {(16, 16)}
    for number in range(3):
        Image.new("RGB", (30, 20), "blue").save(tmp_path / f"{number}.png")
    tried = trials(model, (16, 16), ExportConfig(images=str(tmp_path)))
    photographs = [tuple(one.images.shape[2:]) for one in tried if one.kind == "photographs"]
    assert photographs == [(16, 16), (24, 36), (8, 12), (16, 16)], "photographs are tried at every size too"
    assert shapes(dynamic="none", batch=4, images=str(tmp_path / "a.png")) == {(4, 3, 16, 16)}


def test_what_was_compared_is_said_once_for_each_size():
    found = [Difference((count, 3, 24, 36), "cls", 1e-6 * count) for count in (1, 3)]
    found += [Difference((1, 3, 24, 36), "cls", 4e-6, "photographs"), Difference((1, 3, 16, 16), "patches", 0.0)]
    assert told(found) == [
        "noise of 3 x 24 x 36: largest difference 3.0e-06 (cls)",
        "photographs of 3 x 24 x 36: largest difference 4.0e-06 (cls)",
        "noise of 3 x 16 x 16: largest difference 0.0e+00 (patches)",
    ]


def test_a_difference_leaves_no_file(weights, tmp_path, monkeypatch, no_shape_checks):
    def wrong(graph, example, path, config):
        path.write_bytes(b"something")
        return lambda images: {name: one + 1 for name, one in zip(graph.outputs, graph(images), strict=True)}

    monkeypatch.setattr(program, "write", wrong)
    with pytest.raises(ConversionError, match=r"differ by 1.0e\+00"):
        export(weights, tmp_path / "out" / "x.pt", ExportConfig(to="trace", dynamic="none"))
    assert list((tmp_path / "out").iterdir()) == []


def test_what_does_not_fit(weights, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in .onnx"):
        export(weights, tmp_path / "x.pt", ExportConfig())
    with pytest.raises(ConfigError, match=r"multiples of the model's patch, 14; try \[224, 28\]"):
        export(weights, tmp_path / "x.pt2", ExportConfig(to="program", size=(225, 30)))
    with pytest.raises(CheckpointError, match="exists already"):
        export(weights, weights, ExportConfig(to="hf"))
    for settings in (
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
        {"to": "tflite"},
        {"to": "trace", "precision": "fp16"},
        {"aot": True},
        {"to": "hf", "head": "x"},
        {"opset": 11},
        {"batch": 0},
    ):
        with pytest.raises(ConfigError):
            ExportConfig(**settings)
    assert shipping._baked(load(weights), (28, 42)).grid == (2, 3)
