# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.errors import ModelError
from opendino.fast.merging import Merged
from opendino.fast.optimize import optimize
from opendino.models.classifier import LinearClassifier


def test_by_hand():
    # places 1 to 5 are patches; even ones are 1, 3, 5, those between 2, 4; 3 is like 4, 5 is like 4 but less
    tokens = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [5.0], [10.0]]])
    keys = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 1.0], [2, 2.1], [1, 1.5]]])
    merged = Merged(tokens, protected=1)
    merged.let_go(keys, 1)
    assert merged.tokens.flatten().tolist() == [9, 1, 2, 4, 10]  # (3 + 5) / 2
    assert merged.sizes.tolist() == [[1, 1, 1, 2, 1]]
    assert merged.places.tolist() == [[0, 1, 2, 3, 3, 4]]
    # patches 1, 2, {3, 4}, 5: 1 and {3, 4} may go, and both are most like 5
    merged.let_go(torch.tensor([[[0.0, 1], [1, 0], [0, 1], [1, 1], [1, 0.9]]]), 5)
    assert merged.tokens.flatten().tolist() == [9, 2, (1 + 2 * 4 + 10) / 4]
    assert merged.sizes.tolist() == [[1, 1, 4]]
    assert merged.places.tolist() == [[0, 2, 1, 2, 2, 2]]
    assert merged.restored().flatten().tolist() == [9, 4.75, 2, 4.75, 4.75, 4.75]


@pytest.mark.parametrize(("dtype", "close"), [("fp32", 1e-5), ("bf16", 3e-2)])
@torch.no_grad()
def test_equal_tokens_lose_nothing_as_one(backbone, dtype, close):
    """Without positions, 8 equal patches above 8 others: of 16 tokens 8, 4 and 2 are left, and all that they say."""
    model = backbone(num_register_tokens=2)
    model.pos_embed.zero_()
    images = torch.randn(3, 3, 2, 1, 7, 1, 7).expand(-1, -1, -1, 2, -1, 4, -1).reshape(3, 3, 28, 28)
    fast = optimize(model, dtype, merge=0.5)
    found, wanted = fast.forward_features(images), model.forward_features(images)
    for name in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm"):
        assert (found[name] - wanted[name]).abs().max() / wanted[name].abs().max() < close, name
    (leading,) = fast.leading_tokens(images)
    assert (leading[:, 0] - wanted["x_norm_clstoken"]).abs().max() / wanted["x_norm_clstoken"].abs().max() < close
    for one, other in zip(
        fast.get_intermediate_layers(images, n=[0, 1], reshape=True),
        model.get_intermediate_layers(images, n=[0, 1], reshape=True),
        strict=True,
    ):
        assert (one - other).abs().max() / other.abs().max() < close
    both = fast.forward_features([images, images[:1, :, :14]])
    assert torch.equal(both[0]["x_prenorm"], found["x_prenorm"])
    assert both[1]["x_norm_patchtokens"].shape == (1, 8, 64)


@torch.no_grad()
def test_merged_patches_are_equal_and_others_are_not(backbone):
    model = backbone()
    images = torch.randn(2, 3, 28, 28)
    patches = optimize(model, "fp32", merge=0.25).forward_features(images)["x_norm_patchtokens"]
    for image in patches:
        assert len(image.unique(dim=0)) == 16 - 3 * 4  # 16, 12, 8, 4
    assert torch.equal(optimize(model, "fp32", merge=0.0)(images), optimize(model, "fp32")(images))
    fast = optimize(model, "fp32", merge=0.25)
    whole = fast.get_intermediate_layers(images, [0, 2], return_class_token=True)
    for leading, (_, cls) in zip(fast.leading_tokens(images, [0, 2]), whole, strict=True):
        torch.testing.assert_close(leading[:, 0], cls, rtol=1e-5, atol=1e-5)
    alone = optimize(model, "fp32", merge=0.25).forward_features(images[1:])["x_norm_patchtokens"]
    torch.testing.assert_close(alone, patches[1:], rtol=1e-4, atol=1e-5)


def test_what_it_cannot_be_done_for(backbone):
    with pytest.raises(ModelError, match="no share"):
        optimize(backbone(), merge=0.6)
    odd = backbone()
    odd.blocks[1].attn.qkv = type("Adapted", (torch.nn.Linear,), {})(64, 192)
    with pytest.raises(ModelError, match="LoRA"):
        optimize(odd, merge=0.1)
    classifier = LinearClassifier(backbone(), classes=2, layers=1)
    assert optimize(classifier, merge=0.1).backbone.merge == 0.1
