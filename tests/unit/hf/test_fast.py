# SPDX-License-Identifier: Apache-2.0
"""`opendino.optimize` on the models of the Hugging Face face."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from opendino import hf
from opendino.errors import ModelError
from opendino.fast.optimize import optimize
from opendino.hf._layers import Dinov2Layer

TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}


def randomised(model):
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "lambda" in name or "norm" in name else 0.0, std=0.2)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("fields", [{}, {"use_swiglu_ffn": True}, {"qkv_bias": False}])
@pytest.mark.parametrize("registers", [False, True])
def test_backbone_gives_the_same_numbers(registers, fields):
    config = (hf.Dinov2WithRegistersConfig if registers else hf.Dinov2Config)(**TINY, **fields)
    model = randomised((hf.Dinov2WithRegistersModel if registers else hf.Dinov2Model)(config))
    fast = optimize(model, image_size=28)
    assert type(fast) is type(model)
    images = torch.randn(2, 3, 28, 35)
    tokens = 1 + 4 * registers + 20
    seen = torch.ones(2, tokens, dtype=torch.bool)
    seen[1, -5:] = False
    for arguments in ({}, {"attention_mask": seen}, {"output_attentions": True, "output_hidden_states": True}):
        found, wanted = fast(images, **arguments), model(images, **arguments)
        assert found.keys() == wanted.keys()
        torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state, atol=2e-5, rtol=2e-5)
        for name in ("hidden_states", "attentions"):
            torch.testing.assert_close(found.get(name), wanted.get(name), atol=1e-4, rtol=1e-4)


def test_bfloat16_classifier_and_feature_maps():
    images = torch.randn(2, 3, 28, 28)
    classifier = randomised(hf.Dinov2ForImageClassification(hf.Dinov2Config(**TINY, num_labels=3)))
    assert (optimize(classifier, "bf16")(images).logits - classifier(images).logits).abs().max() < 0.3
    torch.testing.assert_close(optimize(classifier)(images).logits, classifier(images).logits, atol=1e-4, rtol=1e-4)
    maps = randomised(hf.Dinov2Backbone(hf.Dinov2Config(**TINY, out_indices=[1, 2])))
    for one, other in zip(optimize(maps)(images).feature_maps, maps(images).feature_maps, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated", "ignore:.*is_gradient_checkpointing.*deprecated")
@pytest.mark.parametrize("kind", [hf.Dinov2Model, hf.Dinov2ForImageClassification, hf.Dinov2Backbone])
def test_a_refused_conversion_leaves_the_copy_as_it_was(kind, no_shape_checks):
    fast, images = optimize(randomised(kind(hf.Dinov2Config(**TINY))), "bf16"), torch.randn(1, 3, 28, 28)
    before = {name: tensor.clone() for name, tensor in fast.named_parameters()}
    for change in (fast.half, fast.bfloat16, fast.double, fast.float, lambda: fast.to("meta")):
        with pytest.raises(ModelError, match="stays on cpu"):
            change()
    with pytest.raises(ModelError, match="neither copied nor pickled"):
        copy.deepcopy(fast)
    with pytest.raises(ModelError, match="neither traced nor exported"):
        torch.jit.trace(fast, images, strict=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fast.named_parameters())
    assert all(tensor.isfinite().all() for tensor in fast.to("cpu")(images, return_dict=False)[0])


def test_layers_that_are_not_plain_stay():
    model = randomised(hf.Dinov2Model(hf.Dinov2Config(**TINY, hidden_act="relu")))
    fast, images = optimize(model), torch.randn(1, 3, 28, 28)
    assert isinstance(fast.encoder.layer[0], Dinov2Layer)
    torch.testing.assert_close(fast(images).last_hidden_state, model(images).last_hidden_state)
    with pytest.raises(ModelError, match="already"):
        optimize(fast)
    with pytest.raises(ModelError, match="no patch"):
        optimize(model, image_size=(28, 3))
