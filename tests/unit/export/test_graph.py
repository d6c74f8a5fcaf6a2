# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.export.graph import Graph, backbone_of
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer


def backbone(**settings):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return VisionTransformer(**(sizes | settings)).eval()


@pytest.mark.parametrize(("registers", "layers"), [(0, 1), (2, 3)])
def test_the_graph_of_a_classifier_gives_what_it_gives(registers, layers):
    model = LinearClassifier(backbone(num_register_tokens=registers), 5, layers).eval()
    images = torch.randn(2, 3, 16, 24)
    graph = Graph(model)
    found = dict(zip(graph.outputs, graph(images), strict=True))
    wanted = model.backbone.forward_features(images)
    torch.testing.assert_close(found["logits"], model(images))
    torch.testing.assert_close(found["patches"], wanted["x_norm_patchtokens"])
    torch.testing.assert_close(found["cls"], wanted["x_norm_clstoken"])
    assert ("registers" in found) is bool(registers)
    assert backbone_of(model) is model.backbone
