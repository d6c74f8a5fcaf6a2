# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from safetensors.torch import save_file

from opendino.checkpoint.hub import load
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.eval._features import FeatureConfig
from opendino.eval._segmenter import HeadConfig, Linear
from opendino.eval.depth import DepthConfig, DepthDataConfig, DepthHeadConfig, Estimator
from opendino.export.graph import Graph
from opendino.export.heads import with_head
from opendino.export.shipping import ExportConfig, export, largest
from opendino.layers.dpt import DPTHead
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def backbone():
    made = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_register_tokens=2, init_values=0.1
    )
    torch.nn.init.normal_(made.pos_embed, std=0.5)
    for parameter in made.norm.parameters():  # so that maps with and without the norm differ
        torch.nn.init.uniform_(parameter, 0.5, 2)
    return made.eval()


def written(module, path):
    """A head of random weights, statistics too, as a file."""
    with torch.no_grad():
        if isinstance(module, DPTHead):
            module.conv_depth.head[4].bias.fill_(1.0)  # so that the last ReLU lets something through
        else:
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.1, 0.5)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    return path


@torch.no_grad()
def graph_of(backbone, path, images, limits=None):
    graph = Graph(*with_head(backbone, path, limits))
    return dict(zip(graph.outputs, graph(images), strict=True))


@pytest.mark.parametrize("head", ["linear", "ms"])
def test_classes_of_pixels_are_those_of_the_protocol(backbone, tmp_path, head):
    protocol = Linear(backbone, HeadConfig(head=head), FeatureConfig(device="cpu"), 3)
    path, images = written(protocol.head.eval(), tmp_path / "h.safetensors"), torch.randn(2, 3, 16, 24)
    found, wanted = graph_of(backbone, path, images), backbone.forward_features(images)
    torch.testing.assert_close(found["segmentation"], protocol.scores(images))
    torch.testing.assert_close(found["cls"], wanted["x_norm_clstoken"])
    torch.testing.assert_close(found["patches"], wanted["x_norm_patchtokens"])
    torch.testing.assert_close(found["registers"], wanted["x_norm_regtokens"])


@pytest.mark.parametrize("head", ["lin1", "lin4", "dpt"])
@pytest.mark.parametrize("norm", [False, True])
def test_depth_is_that_of_the_protocol(backbone, tmp_path, head, norm):
    settings = DepthConfig(
        DepthDataConfig(min_depth=0.5, max_depth=7.0),
        DepthHeadConfig(head=head, norm=norm),
        FeatureConfig(device="cpu"),
    )
    protocol = Estimator(backbone, settings)
    path, images = written(protocol.head.eval(), tmp_path / "h.safetensors"), torch.randn(1, 3, 20, 12)
    told = {"data": {"range": [0.5, 7.0]}, "config": {"depth": {"norm": norm}}}
    path.with_suffix(".json").write_text(json.dumps(told))
    with torch.no_grad():
        wanted = protocol.depths(images).clamp(0.5, 7.0)
    torch.testing.assert_close(graph_of(backbone, path, images)["depth"], wanted)


@pytest.mark.parametrize("prefix", ["", "linear_head."])
def test_a_classifier_takes_its_place(backbone, tmp_path, prefix):
    wanted, images = LinearClassifier(backbone, 5, 4).eval(), torch.randn(2, 3, 16, 16)
    state = {prefix + name: value.contiguous() for name, value in wanted.linear_head.state_dict().items()}
    save_file(state, tmp_path / "h.safetensors")
    torch.testing.assert_close(graph_of(backbone, tmp_path / "h.safetensors", images)["logits"], wanted(images))


def head_of(backbone, head, path):
    """A file with a head of random weights, and the name of what it says."""
    if head == "dpt":
        settings = DepthConfig(DepthDataConfig(min_depth=1, max_depth=2), DepthHeadConfig(head=head), FeatureConfig())
        return written(Estimator(backbone, settings).head, path), "depth"
    if head == "linear":
        return written(Linear(backbone, HeadConfig(), FeatureConfig(), 3).head, path), "segmentation"
    return written(LinearClassifier(backbone, 5, 4).linear_head, path), "logits"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("to", "suffix"), [("trace", ".pt"), ("program", ".pt2")])
@pytest.mark.parametrize("head", ["classifier", "linear", "dpt"])
def test_graphs_carry_their_heads(weights_of, tmp_path, to, suffix, head, no_shape_checks):
    path, name = head_of(load(weights_of), head, tmp_path / "h.safetensors")
    done = export(weights_of, tmp_path / f"x{suffix}", ExportConfig(to=to, head=str(path), depth_range=(1.0, 2.0)))
    assert largest(done.differences) <= 1e-5
    assert done.outputs[-1] == name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("head", "dynamic"), [("classifier", "batch"), ("linear", "all"), ("dpt", "batch")])
def test_onnx_carries_heads(weights_of, tmp_path, head, dynamic, no_shape_checks):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    path, name = head_of(load(weights_of), head, tmp_path / "h.safetensors")
    config = ExportConfig(dynamic=dynamic, head=str(path), depth_range=(1.0, 2.0))
    done = export(weights_of, tmp_path / "x.onnx", config)
    assert largest(done.differences) <= 2e-5
    assert done.outputs[-1] == name


def test_dpt_says_how_small_an_image_may_be(weights_of, tmp_path):
    path = written(DPTHead(64, 1.0), tmp_path / "h.safetensors")
    config = ExportConfig(to="trace", head=str(path), depth_range=(1.0, 2.0), size=(8, 16))
    with pytest.raises(ConfigError, match="12 pixels or more"):
        export(weights_of, tmp_path / "x.pt", config)


def test_what_fits_nowhere(backbone, tmp_path):
    path = tmp_path / "h.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        with_head(backbone, path, None)
    save_file({"blocks": torch.zeros(3)}, path)
    with pytest.raises(ConversionError, match="holds no head of ours"):
        with_head(backbone, path, None)
    save_file({"weight": torch.zeros(3, 31), "bias": torch.zeros(3)}, path)
    with pytest.raises(ConversionError, match="reads 15 numbers"):
        with_head(backbone, path, None)
    save_file({"conv_seg.weight": torch.zeros(3, 16 * 5, 1, 1)}, path)
    with pytest.raises(ConversionError, match="reads 80 numbers"):
        with_head(backbone, path, None)
    save_file({"conv_seg.weight": torch.zeros(3, 16, 1, 1)}, path)
    with pytest.raises(ConversionError, match="not a whole SegmentationHead"):
        with_head(backbone, path, None)
    save_file({"conv_depth.weight": torch.zeros(8, 32, 1, 1), "conv_depth.bias": torch.zeros(8)}, path)
    with pytest.raises(ConfigError, match=r"depth_range=\[LOW,HIGH\]"):
        with_head(backbone, path, None)
    for told in ('{"data": {"range": [1, "x"]}}', '{"data": []}', '{"data": {"range": 3}}'):
        path.with_suffix(".json").write_text(told)
        with pytest.raises(CheckpointError, match=r"h\.json: does not hold what it should"):
            with_head(backbone, path, None)
    path.with_suffix(".json").write_text("no")
    with pytest.raises(CheckpointError, match="is no JSON"):
        with_head(backbone, path, None)
