# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.errors import ModelError
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer


def backbone(**arguments):
    return VisionTransformer(img_size=28, patch_size=14, embed_dim=64, depth=5, num_heads=1, **arguments).eval()


@pytest.mark.parametrize("registers", [0, 4])
def test_one_layer_reads_cls_and_the_mean_patch_without_registers(registers):
    model = LinearClassifier(backbone(num_register_tokens=registers), classes=7, layers=1)
    images = torch.randn(3, 3, 28, 42)
    features = model.backbone.forward_features(images)
    read = torch.cat([features["x_norm_clstoken"], features["x_norm_patchtokens"].mean(1)], 1)
    torch.testing.assert_close(model(images), read @ model.linear_head.weight.T + model.linear_head.bias)


def test_four_layers_read_four_cls_in_the_order_of_depth_and_the_last_mean():
    model = LinearClassifier(backbone(), classes=7, layers=4)
    images = torch.randn(2, 3, 28, 28)
    stages = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: stages.append(output))
    logits = model(images)
    normed = [model.backbone.norm(stage) for stage in stages[-4:]]
    read = torch.cat([*(stage[:, 0] for stage in normed), normed[-1][:, 1:].mean(1)], 1)
    assert read.shape == (2, 320)
    torch.testing.assert_close(logits, read @ model.linear_head.weight.T + model.linear_head.bias)


def test_size_of_the_published_heads():
    small = {"embed_dim": 384, "num_heads": 6}
    body = VisionTransformer(img_size=28, patch_size=14, depth=4, **small)
    heads = [LinearClassifier(body, layers=layers).linear_head for layers in (1, 4)]
    assert [sum(p.numel() for p in head.parameters()) for head in heads] == [769_000, 1_921_000]


def test_what_cannot_be_built_is_said():
    with pytest.raises(ModelError, match="layers=6 of a backbone of 5 blocks"):
        LinearClassifier(backbone(), layers=6)
    with pytest.raises(ModelError, match="2 labels for 3 classes"):
        LinearClassifier(backbone(), classes=3, labels=["a", "b"])
