# SPDX-License-Identifier: Apache-2.0
"""`opendino.optimize` gives the numbers of the model it was given, by every method of its."""

import copy

import pytest
import torch

import opendino
from opendino import onednn
from opendino.errors import ModelError
from opendino.fast.optimize import FastVisionTransformer, fast_copy, optimize
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer


def apart(found, wanted):
    """Largest difference, in units of the largest number there is."""
    if not found.numel() or found.dtype == torch.bool:
        return 0 if torch.equal(found, wanted) else torch.inf
    return (found.float() - wanted).abs().max() / wanted.abs().max()


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_register_tokens": 3, "interpolate_offset": 0.0, "interpolate_antialias": True}, {"ffn_layer": "swiglu"}],
    ids=["plain", "registers", "swiglu"],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@torch.no_grad()
def test_every_method_gives_the_same_numbers(backbone, settings, dtype):
    model = backbone(**settings)
    fast = optimize(model, dtype)
    close = {"fp32": 1e-5, "bf16": 3e-2}[dtype]
    assert isinstance(fast, VisionTransformer)
    assert fast.input_spec == model.input_spec
    for height, width in ((28, 28), (14, 35)):
        images = torch.randn(2, 3, height, width)
        masks = torch.rand(2, height * width // 49) < 0.3
        found, wanted = fast.forward_features(images, masks), model.forward_features(images, masks)
        assert found.keys() == wanted.keys()
        for name in found:
            assert apart(found[name], wanted[name]) < close, name
        pairs = zip(
            fast.get_intermediate_layers(images, n=[0, 2], return_class_token=True, norm=False),
            model.get_intermediate_layers(images, n=[0, 2], return_class_token=True, norm=False),
            strict=True,
        )
        for one, other in pairs:
            for a, b in zip(one, other, strict=True):
                assert apart(a, b) < close
        assert apart(fast(images, masks), wanted["x_norm_clstoken"]) < close
        assert apart(fast(images, masks), found["x_norm_clstoken"]) < close / 5
        R = model.num_register_tokens
        for one, (_, cls, registers) in zip(
            fast.leading_tokens(images, [0, 2]),
            fast.get_intermediate_layers(images, [0, 2], return_class_token=True, return_register_tokens=True),
            strict=True,
        ):
            assert one.shape[1] == 1 + R
            assert apart(one, torch.cat([cls[:, None], registers], dim=1)) < close / 5
    crops = [torch.randn(2, 3, 28, 28), torch.randn(3, 3, 14, 14)]
    for one, other in zip(fast.forward_features(crops), model.forward_features(crops), strict=True):
        assert apart(one["x_norm_patchtokens"], other["x_norm_patchtokens"]) < close
    for one, other in zip(fast(crops), model.forward_features(crops), strict=True):
        assert apart(one, other["x_norm_clstoken"]) < close


@pytest.mark.skipif(not onednn.int8_available(), reason="this processor has no fast 8-bit products")
@pytest.mark.parametrize("settings", [{}, {"ffn_layer": "swiglu"}, {"ffn_layer": "identity"}])
@torch.no_grad()
def test_eight_bits_come_near(backbone, settings):
    model = backbone(**settings)
    images = torch.randn(3, 3, 28, 28)
    wanted, fast = model.forward_features(images), optimize(model, "int8")
    found = fast.forward_features(images)
    for name in ("x_norm_clstoken", "x_norm_patchtokens"):
        error = (found[name] - wanted[name]).square().mean().sqrt() / wanted[name].square().mean().sqrt()
        assert 1e-4 < error < 4e-2, name
    assert torch.equal(fast(images[1:2])[0], fast(images)[1])
    assert apart(fast(images), found["x_norm_clstoken"]) < 1e-2


def test_eight_bits_are_refused_where_there_are_none(backbone, monkeypatch):
    monkeypatch.setattr(onednn, "int8_available", lambda: False)
    with pytest.raises(ModelError, match="8-bit products"):
        optimize(backbone(), "int8")
    for other in (optimize(backbone(), "fp32"), torch.nn.Identity()):  # of which there is no fast copy
        with pytest.raises(ModelError, match="int8 is for the fast copy"):
            fast_copy(other, "int8")
        assert fast_copy(other, "bf16") is other
        with pytest.raises(ModelError, match="merge is for the fast copy"):
            fast_copy(other, "bf16", 0.1)


@torch.no_grad()
def test_published_shape_within_the_tolerances():
    model = opendino.create("vits14", depth=4).eval()
    for name, parameter in model.blocks.named_parameters():
        if name.endswith("weight") and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.04)
        elif name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    images = torch.randn(1, 3, 98, 98)
    wanted = model.forward_features(images)["x_norm_patchtokens"]
    assert wanted.abs().max() > 4
    for dtype, close in (("fp32", 1e-5), ("bf16", 3e-2)):
        found = optimize(model, dtype, 98).forward_features(images)["x_norm_patchtokens"]
        assert (found - wanted).abs().max() < close


@torch.no_grad()
def test_the_model_is_left_as_it_is_and_autocast_is_not_asked(backbone):
    model, images = backbone().train(), torch.randn(1, 3, 28, 28)
    before = copy.deepcopy(model.state_dict())
    fast = optimize(model, "fp32", 28)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not fast.training
    wanted = fast(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(images), wanted)
    for parameter in model.parameters():
        parameter.add_(1.0)
    assert torch.equal(fast(images), wanted)
    assert before.keys() == model.state_dict().keys()


@torch.no_grad()
def test_classifier_and_a_block_that_is_not_ours(backbone):
    model = LinearClassifier(backbone(), classes=5, layers=2).eval()
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(optimize(model)(images), model(images), atol=1e-4, rtol=1e-4)
    plain = backbone()

    class Adapted(torch.nn.Linear):
        """A layer with something on top."""

        def forward(self, x):
            return super().forward(x) * 2

    plain.blocks[1].mlp.fc1 = Adapted(64, 256).requires_grad_(False)
    torch.testing.assert_close(optimize(plain)(images), plain(images), atol=1e-4, rtol=1e-4)


def test_baked_and_half_precision_models(backbone):
    baked, images = backbone().bake(14), torch.randn(1, 3, 14, 14)
    torch.testing.assert_close(optimize(baked)(images), baked(images).detach(), atol=2e-5, rtol=2e-5)
    half = backbone().bfloat16()
    half.blocks[0].mlp.fc1.__class__ = type("Adapted", (torch.nn.Linear,), {})  # not ours, and in float32 in the copy
    assert optimize(half)(images.bfloat16()).dtype == torch.float32
    half = backbone().bfloat16()
    assert optimize(half).blocks[0].dtype == torch.bfloat16
    assert optimize(half)(images.bfloat16()).dtype == torch.float32


def test_what_cannot_be(backbone, no_shape_checks):
    model = backbone()
    fast = optimize(model)
    for wrong, words in (
        (lambda: optimize(torch.nn.Linear(2, 2)), "a Linear is no model"),
        (lambda: optimize(None), "a NoneType is no model"),
        (lambda: optimize("vits14"), "'vits14' is a name; open it with"),
        (lambda: optimize(VisionTransformer), "a type is no model"),
        (lambda: optimize(fast), "already"),
        (lambda: optimize(model, torch.float16), "float16"),
        (lambda: optimize(model, "fp16"), "dtype='fp16'"),
        (lambda: optimize(model, 32), "dtype=32"),
        (lambda: optimize(model, image_size=30), "30x30"),
        (lambda: optimize(model, image_size=0), "0x0"),
        (lambda: optimize(model, image_size="224"), "image_size='224' is no size in pixels"),
        (lambda: optimize(model, image_size=(28,)), r"image_size=\(28,\) is no size"),
        (lambda: optimize(model, image_size=(28, 28.0)), "is no size"),
        (lambda: optimize(model, merge="a"), "merge='a' is no share"),
        (lambda: optimize(model, merge=float("nan")), "merge=nan is no share"),
        (lambda: optimize(model, trial="no"), "trial='no' is neither"),
        (lambda: fast.state_dict(), "cannot be saved"),
        (lambda: fast.half(), "stays on cpu"),
        (lambda: copy.deepcopy(fast), "neither copied nor pickled"),
        (lambda: fast.load_state_dict(model.state_dict()), "takes no other weights"),
    ):
        with pytest.raises(ModelError, match=words):
            wrong()
    assert isinstance(fast.to("cpu").eval(), FastVisionTransformer)
    assert optimize(model, "bfloat16", [28, 35]).blocks[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["backbone", "classifier"])
@torch.no_grad()
def test_a_refused_conversion_leaves_the_copy_as_it_was(backbone, dtype, wrapped):
    if dtype == "int8" and not onednn.int8_available():
        pytest.skip("this processor has no fast 8-bit products")
    fast = optimize(LinearClassifier(backbone(), classes=5, layers=1).eval() if wrapped else backbone(), dtype)
    images = torch.randn(2, 3, 28, 28)
    wanted = fast(images)
    changes = [lambda: fast.half(), lambda: fast.bfloat16(), lambda: fast.double(), lambda: fast.to("meta")]
    for change in changes if dtype == "fp32" else [*changes, lambda: fast.float()]:
        with pytest.raises(ModelError, match="stays on cpu"):
            change()
        assert torch.equal(fast(images), wanted)
    assert torch.equal(fast.to("cpu")(images), wanted)
    if dtype == "fp32":
        assert torch.equal(fast.float()(images), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("baked", [False, True])
@torch.no_grad()
def test_no_trace_and_no_program(backbone, baked, no_shape_checks):
    """Either would be without its weights, and leave position tables without numbers behind."""
    images = torch.randn(1, 3, 28, 28)
    fast = optimize(backbone().bake(28) if baked else backbone())
    for attempt in (torch.jit.trace, lambda model, inputs: torch.export.export(model, (inputs,))):
        with pytest.raises(ModelError, match="neither traced nor exported"):
            attempt(fast, images)
    assert type(fast(images)) is torch.Tensor


def test_only_our_own_backbones_are_made_fast_unasked(backbone):
    model, other = backbone(), torch.nn.Identity()
    assert isinstance(fast_copy(model, "bf16"), FastVisionTransformer)
    assert fast_copy(other, "fp32") is other
    fast = optimize(model)
    assert fast_copy(fast, "fp32") is fast


def test_tokens_that_went_into_a_block_are_let_go_of(backbone):
    """A method on the way would hold on to them until the last block, an eighth of the memory of a pass. So do the
    checks of types that tests put around functions, so this looks at the way itself."""
    plain, merging = optimize(backbone(), "bf16"), optimize(backbone(), "bf16", merge=0.1)
    assert type(plain)._after_blocks is VisionTransformer._after_blocks
    assert type(merging)._after_blocks is not VisionTransformer._after_blocks
