# SPDX-License-Identifier: Apache-2.0
from opendino.export.card import card
from opendino.export.shipping import Difference
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer


def test_a_card_says_what_the_model_is():
    backbone = VisionTransformer(
        img_size=(56, 28), patch_size=14, embed_dim=64, depth=2, num_heads=1, num_register_tokens=4
    )
    text = card(backbone, "runs/mine/", [Difference((1, 3, 56, 28), "features", 2.5e-6)])
    assert "# mine" in text
    assert "| width, blocks, heads | 64, 2, 1 |" in text
    assert "| position table | 56 x 28 pixels |" in text
    assert "- noise of 3 x 56 x 28: largest difference 2.5e-06 (features)" in text
    assert "AutoModel.from_pretrained" in text
    assert "AutoModelForImageClassification" in card(LinearClassifier(backbone, 3, 1), "x", [])
