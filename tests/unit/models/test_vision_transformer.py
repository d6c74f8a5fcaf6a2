# SPDX-License-Identifier: Apache-2.0
"""The model against the published order of operations, written out here a second time."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from opendino import onednn
from opendino.errors import ModelError
from opendino.layers.attention import Attention, use_attention
from opendino.layers.block import Block
from opendino.layers.fast_linear import use_fast_linears
from opendino.layers.lora import add_lora
from opendino.models.vision_transformer import VisionTransformer

TINY = {"img_size": 28, "patch_size": 14, "embed_dim": 64, "depth": 4, "num_heads": 1, "init_values": 1.0}


def randomise(model, seed=0):
    """Every parameter random, so that a wrong order or a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if name.endswith(("gamma", "token", "tokens", "pos_embed")) else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def tiny(**changes):
    return randomise(VisionTransformer(**{**TINY, **changes}))


def published_forward(model, x, masks=None):
    """All tokens before and after the final norm, from the state dict alone."""
    s = model.state_dict()
    D, p, R = model.embed_dim, model.patch_size, model.num_register_tokens
    B = len(x)
    patches = F.unfold(x, p, stride=p).transpose(1, 2)  # [B, N, C p p], rows first
    tokens = patches @ s["patch_embed.proj.weight"].reshape(D, -1).T + s["patch_embed.proj.bias"]
    if masks is not None:
        tokens = tokens.clone()
        tokens[masks] = s["mask_token"][0]
    tokens = torch.cat([s["cls_token"].expand(B, 1, D), tokens], dim=1) + s["pos_embed"]
    if R:
        tokens = torch.cat([tokens[:, :1], s["register_tokens"].expand(B, R, D), tokens[:, 1:]], dim=1)

    def norm(t, name):
        return F.layer_norm(t, (D,), s[name + ".weight"], s[name + ".bias"], 1e-6)

    for i in range(model.depth):
        b = f"blocks.{i}."
        q, k, v = F.linear(norm(tokens, b + "norm1"), s[b + "attn.qkv.weight"], s[b + "attn.qkv.bias"]).chunk(3, -1)
        heads = [
            ((q_ @ k_.transpose(1, 2)) / (D / model.num_heads) ** 0.5).softmax(-1) @ v_
            for q_, k_, v_ in zip(*(t.split(D // model.num_heads, -1) for t in (q, k, v)), strict=True)
        ]
        mixed = F.linear(torch.cat(heads, -1), s[b + "attn.proj.weight"], s[b + "attn.proj.bias"])
        tokens = tokens + s[b + "ls1.gamma"] * mixed
        hidden = F.gelu(F.linear(norm(tokens, b + "norm2"), s[b + "mlp.fc1.weight"], s[b + "mlp.fc1.bias"]))
        tokens = tokens + s[b + "ls2.gamma"] * F.linear(hidden, s[b + "mlp.fc2.weight"], s[b + "mlp.fc2.bias"])
    return tokens, norm(tokens, "norm")


def test_official_keys_in_order():
    """Facts 1.6: the tiny model with 4 registers."""
    state = VisionTransformer(**TINY, num_register_tokens=4).state_dict()
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"]
    block += ["ls1.gamma", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"]
    block += ["mlp.fc2.bias", "ls2.gamma"]
    keys = ["cls_token", "pos_embed", "register_tokens", "mask_token", "patch_embed.proj.weight"]
    keys += ["patch_embed.proj.bias", *(f"blocks.{i}.{key}" for i in range(4) for key in block)]
    assert list(state) == [*keys, "norm.weight", "norm.bias"]
    assert sum(value.numel() for value in state.values()) == 238_976
    shapes = {name: tuple(state[name].shape) for name in keys[:4]}
    assert shapes == {
        "cls_token": (1, 1, 64),
        "pos_embed": (1, 5, 64),
        "register_tokens": (1, 4, 64),
        "mask_token": (1, 64),
    }


def test_keys_that_settings_remove():
    state = VisionTransformer(**{**TINY, "init_values": None}, ffn_layer="swiglu", qkv_bias=False).state_dict()
    assert "register_tokens" not in state
    assert not [key for key in state if "gamma" in key or "qkv.bias" in key or "fc1" in key]
    assert state["blocks.3.mlp.w12.weight"].shape == (352, 64)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_published_order_of_operations(registers, masked):
    model = tiny(num_register_tokens=registers, num_heads=4)
    x = torch.randn(3, 3, 28, 28)
    masks = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool) if masked else None
    out = model.forward_features(x, masks)
    prenorm, normed = published_forward(model, x, masks)
    torch.testing.assert_close(out["x_prenorm"], prenorm, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out["x_norm_clstoken"], normed[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out["x_norm_regtokens"], normed[:, 1 : 1 + registers], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out["x_norm_patchtokens"], normed[:, 1 + registers :], atol=1e-5, rtol=1e-5)
    assert out["masks"] is masks


def test_a_masked_patch_is_not_seen():
    model = tiny()
    x = torch.randn(1, 3, 28, 28)
    other = x.clone()
    other[:, :, 14:, :14] = torch.randn(1, 3, 14, 14)  # patch 2 of the 2x2 grid, rows first
    masks = torch.tensor([[False, False, True, False]])
    assert torch.equal(model.forward_features(x, masks)["x_prenorm"], model.forward_features(other, masks)["x_prenorm"])
    assert not torch.equal(model(x), model(other))


def test_forward_gives_cls_or_everything():
    model = tiny()
    x = torch.randn(2, 3, 28, 28)
    features = model(x, is_training=True)
    cls = model(x)
    assert apart(cls, features["x_norm_clstoken"]) < 1e-6
    assert torch.equal(model.train()(x), cls)
    model.head = torch.nn.Linear(64, 7)
    assert torch.equal(model(x), model.head(cls))


def apart(found, wanted):
    """Largest difference, in units of the largest number there is."""
    assert found.shape == wanted.shape
    return float((found.detach() - wanted.detach()).abs().max() / wanted.detach().abs().max())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_register_tokens": 3, "interpolate_offset": 0.0, "interpolate_antialias": True},
        {"ffn_layer": "swiglu"},
        {"ffn_layer": "identity"},
        {"init_values": None},
        {"qkv_bias": False, "proj_bias": False, "ffn_bias": False},
        {"drop_path_rate": 0.3, "depth": 1},
    ],
)
def test_leading_tokens_are_those_of_the_whole_pass(changes):
    model, R = tiny(**changes), changes.get("num_register_tokens", 0)
    for height, width in ((28, 28), (14, 56), (70, 42)):
        x, masks = torch.randn(3, 3, height, width), torch.rand(3, height * width // 196) < 0.4
        features = model.forward_features(x, masks)
        (found,) = model.leading_tokens(x, masks=masks)
        assert found.shape == (3, 1 + R, 64)
        assert apart(found[:, 0], features["x_norm_clstoken"]) < 1e-6
        assert torch.equal(model(x, masks), found[:, 0])
        if R:
            assert apart(found[:, 1:], features["x_norm_regtokens"]) < 1e-6
    layers = sorted({0, model.depth // 2})
    whole = model.get_intermediate_layers(x, layers, return_class_token=True, return_register_tokens=True)
    for found, (_, cls, registers) in zip(model.leading_tokens(x, layers), whole, strict=True):
        assert apart(found, torch.cat([cls[:, None], registers], dim=1)) < 1e-6
    with pytest.raises(ModelError, match="asks for blocks"):
        model.leading_tokens(x, [model.depth])


@pytest.mark.parametrize("way", ["auto", "fused"])
def test_leading_tokens_in_bfloat16_are_those_of_the_whole_pass_within_a_rounding(way):
    model, x = tiny(num_register_tokens=1), torch.randn(3, 3, 42, 42)
    use_attention(model, way)
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(model(x), model.forward_features(x)["x_norm_clstoken"]) < 5e-3
    half = model.bfloat16()
    assert apart(half(x.bfloat16()), half.forward_features(x.bfloat16())["x_norm_clstoken"]) < 1e-2


def test_lists_without_training_give_a_list():
    model, crops = tiny(), [torch.randn(2, 3, 28, 28), torch.randn(3, 3, 14, 14)]
    masks = [torch.rand(2, 4) < 0.5, None]
    for found, wanted in zip(model(crops, masks), model.forward_features(crops, masks), strict=True):
        assert apart(found, wanted["x_norm_clstoken"]) < 1e-6
    with pytest.raises(ModelError, match="2 image batches with 1 masks"):
        model(crops, [None])


def test_gradients_of_cls_are_those_of_the_whole_pass():
    model, x = tiny(num_register_tokens=1), torch.randn(2, 3, 28, 28)
    weights = torch.randn(2, 64)
    found, wanted = (
        torch.autograd.grad((cls * weights).sum(), [*model.parameters()], allow_unused=True)
        for cls in (model(x), model.forward_features(x)["x_norm_clstoken"])
    )
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-7)


class Flops(TorchDispatchMode):
    """Counts like `FlopCounterMode`, whose hooks on every module have everything run whole."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def test_the_last_block_does_less_for_cls():
    """Of 2 x 10 tokens of 64 channels the last block leaves 6 of each 10 without queries, output (D^2 each) and MLP
    (8 D^2), the CLS and three patches are left; what is mixed is not counted."""
    model, x = tiny(), torch.randn(2, 3, 42, 42)
    with torch.no_grad(), Flops() as whole:
        model.forward_features(x)
    with torch.no_grad(), Flops() as short:
        model(x)
    D, others = 64, 2 * 6
    assert whole.total - short.total == 2 * others * (D * D + D * D + 8 * D * D)


def test_who_looks_at_the_last_block_sees_all_of_it():
    """Features that users take by hooks keep their shape, and so do layers that are put in others' places."""
    x = torch.randn(2, 3, 28, 28)
    for place in ("", "norm1", "attn", "attn.qkv", "mlp"):
        model, seen = tiny(), []
        wanted = model(x)
        handle = model.blocks[-1].get_submodule(place).register_forward_hook(lambda *said: seen.append(said[2]))  # noqa: B023
        assert apart(model(x), wanted) < 1e-6
        assert [tokens.shape[1] for tokens in seen] == [5], place
        handle.remove()
        model(x)
        assert len(seen) == 1
    block = model.blocks[-1]
    block.attn.forward = lambda tokens, groups: torch.zeros_like(tokens)
    assert apart(model(x), model.forward_features(x)["x_norm_clstoken"]) < 1e-6
    add_lora(model := tiny(), "attn.qkv", 2, 1.0)
    torch.nn.init.normal_(model.blocks[-1].attn.qkv.up)
    assert apart(model(x), model.forward_features(x)["x_norm_clstoken"]) < 1e-6
    model.blocks[-1] = torch.nn.Identity()
    assert apart(model(x), model.forward_features(x)["x_norm_clstoken"]) < 1e-6


def test_who_looks_at_the_final_norm_sees_all_tokens():
    model, x, seen = tiny(num_register_tokens=1), torch.randn(2, 3, 28, 28), []
    wanted = model(x)
    listening = (
        model.norm.register_forward_hook(lambda _, given, __: seen.append(given[0].shape)),
        model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape)),
    )
    assert apart(model(x), wanted) < 1e-6
    assert seen == [(2, 6, 64)] * 2
    for handle in listening:
        handle.remove()
    model(x)
    assert len(seen) == 2


def test_who_looks_at_every_module_sees_the_last_block_and_the_norm_whole():
    model, x, seen = tiny(), torch.randn(2, 3, 28, 28), []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, said: seen.append((type(module).__name__, getattr(said, "shape", None)))
    )
    try:
        model(x)
    finally:
        handle.remove()
    for name in ("Block", "Attention"):
        assert seen.count((name, (2, 5, 64))) == model.depth
    assert seen.count(("LayerNorm", (2, 5, 64))) == 2 * model.depth + 1


def test_a_final_norm_that_mixes_tokens_is_given_all_of_them():
    class Centred(torch.nn.Module):
        def forward(self, tokens):
            return tokens - tokens.mean(dim=1, keepdim=True)

    model, x = tiny(num_register_tokens=1), torch.randn(2, 3, 28, 28)
    model.norm = Centred()
    features = model.forward_features(x)
    (found,) = model.leading_tokens(x)
    assert apart(model(x), features["x_norm_clstoken"]) < 1e-6
    assert apart(found[:, 1:], features["x_norm_regtokens"]) < 1e-6


def test_calling_a_subclass_gives_what_its_own_features_are():
    class Mine(VisionTransformer):
        def forward_features(self, x, masks=None):
            features = super().forward_features(x, masks)
            return features | {"x_norm_clstoken": features["x_norm_patchtokens"].mean(dim=1)}

    model = Mine(img_size=28, patch_size=14, embed_dim=64, depth=2, num_heads=2)
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(model(x), model.forward_features(x)["x_norm_patchtokens"].mean(dim=1))
    assert torch.equal(model([x, x])[1], model(x))


def test_a_single_image_is_rounded_alike_wherever_weights_lie():
    """Weights of a file begin at any multiple of eight bytes; nor does it matter who asks for gradients."""
    model, x, two = tiny(), torch.randn(1, 3, 28, 28), torch.randn(2, 3, 28, 28)
    wanted = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), wanted)
        of_two = model(two)
    assert torch.equal(model(two), of_two)
    for parameter in model.parameters():
        room = torch.empty(parameter.numel() + 16)
        shifted = room[(10 - room.data_ptr() // 4) % 16 :][: parameter.numel()].view(parameter.shape)
        parameter.data = shifted.copy_(parameter.data)
    assert model.norm.weight.data_ptr() % 64 == 40
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("width", [64, 384])
def test_an_image_has_the_same_cls_in_any_batch(width):
    """To the last bit, wherever the whole pass gives it so; a product of few rows may be rounded in its own way."""
    model, x = tiny(embed_dim=width, num_heads=width // 64, depth=2).eval(), torch.randn(8, 3, 56, 56)
    with torch.no_grad():
        whole, short = model.forward_features(x)["x_norm_clstoken"], model(x)
        for n in range(1, 6):
            found = model(x[:n])
            assert apart(found, short[:n]) < 1e-5
            if torch.equal(model.forward_features(x[:n])["x_norm_clstoken"], whole[:n]):
                assert torch.equal(found, short[:n]), n


@pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN")
def test_layers_that_learn_fast_are_shortened_too():
    model, x = tiny(), torch.randn(2, 3, 28, 28)
    wanted = model(x)
    use_fast_linears(model)
    assert apart(model(x), wanted) < 1e-6
    with torch.no_grad(), Flops() as plain:
        model.blocks[-1].first_tokens(torch.randn(2, 5, 64), 1)
    assert plain.total == 2 * 64 * 64 * (2 * 5 * 2 + 2)  # keys, values, queries; the rest is oneDNN's


def test_training_draws_as_it_did():
    """Stochastic depth draws for all tokens of the last block, so that a run goes on as it began."""
    model, x = tiny(drop_path_rate=0.5).train(), torch.randn(8, 3, 28, 28)
    torch.manual_seed(3)
    found = model(x)
    torch.manual_seed(3)
    assert torch.equal(found, model.forward_features(x)["x_norm_clstoken"])


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_a_list_of_crops_equals_separate_passes_with_gradients(ffn):
    model = tiny(num_register_tokens=2, ffn_layer=ffn, depth=2).train()
    xs = [torch.randn(2, 3, 28, 28), torch.randn(5, 3, 14, 14), torch.randn(1, 3, 28, 56)]
    masks = [torch.rand(2, 4) > 0.5, None, torch.rand(1, 8) > 0.5]

    def gradients(outs):
        loss = sum(out["x_norm_clstoken"].square().sum() + out["x_norm_patchtokens"].sin().sum() for out in outs)
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    packed = model.forward_features(xs, masks)
    separate = [model.forward_features(x, m) for x, m in zip(xs, masks, strict=True)]
    for one, other in zip(packed, separate, strict=True):
        for key in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm"):
            torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=0)
        assert one["masks"] is other["masks"]
    for ours, wanted in zip(gradients(packed), gradients(separate), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_list_without_masks():
    model = tiny()
    xs = [torch.randn(2, 3, 28, 28), torch.randn(3, 3, 14, 14)]
    for x, out in zip(xs, model.forward_features(xs), strict=True):
        torch.testing.assert_close(out["x_norm_clstoken"], model(x), atol=1e-5, rtol=0)
        assert out["masks"] is None


def test_stochastic_depth_drops_within_each_crop_group():
    """Rate 0.5 and one block: exactly half of each group misses the attention residual."""
    model = tiny(depth=1, drop_path_rate=0.5, ffn_layer="identity").train()
    with torch.no_grad():
        model.blocks[0].ls2.gamma.zero_()
    xs = [torch.randn(4, 3, 28, 28), torch.randn(6, 3, 14, 14)]
    for x, out in zip(xs, model.forward_features(xs), strict=True):
        unchanged = model._tokens(x, None)
        with torch.no_grad():
            attended = unchanged + 2 * model.blocks[0].ls1(model.blocks[0].attn(model.blocks[0].norm1(unchanged)))
        same, moved = ((out["x_prenorm"] - t).abs().amax(dim=(1, 2)) < 1e-5 for t in (unchanged, attended))
        assert same.sum() == moved.sum() == len(x) // 2
        assert (same ^ moved).all()


def test_drop_rates_by_depth():
    assert [b.drop_path for b in VisionTransformer(**TINY, drop_path_rate=0.3).blocks] == [0.3] * 4
    ramp = [b.drop_path for b in VisionTransformer(**TINY, drop_path_rate=0.3, drop_path_uniform=False).blocks]
    assert ramp == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_intermediate_layers():
    model = tiny(num_register_tokens=2)
    x = torch.randn(2, 3, 28, 42)
    stream, outputs = model._tokens(x, None), []
    for block in model.blocks:
        stream = block(stream)
        outputs.append(stream)
    (last,) = model.get_intermediate_layers(x)
    assert torch.equal(last, model.norm(outputs[3])[:, 3:])
    both = model.get_intermediate_layers(x, n=[2, 0], norm=False, return_class_token=True)
    for (patches, cls), i in zip(both, (0, 2), strict=True):  # in the order of depth
        assert torch.equal(patches, outputs[i][:, 3:])
        assert torch.equal(cls, outputs[i][:, 0])
    two = model.get_intermediate_layers(x, n=2, reshape=True, return_class_token=True, return_register_tokens=True)
    for (patches, cls, registers), i in zip(two, (2, 3), strict=True):
        normed = model.norm(outputs[i])
        assert patches.shape == (2, 64, 2, 3)
        assert patches.is_contiguous()
        assert torch.equal(patches[:, :, 1, 0], normed[:, 3 + 3])
        assert torch.equal(cls, normed[:, 0])
        assert torch.equal(registers, normed[:, 1:3])
    assert torch.equal(model.get_intermediate_layers(x)[0], model.forward_features(x)["x_norm_patchtokens"])


@pytest.mark.parametrize("n", [0, 5, [4], [-1], []])
def test_intermediate_layers_that_do_not_exist(n):
    with pytest.raises(ModelError, match="a backbone of 4 does not have; pass 1 to 4"):
        tiny().get_intermediate_layers(torch.zeros(1, 3, 28, 28), n=n)


def test_start_values():
    model = VisionTransformer(**{**TINY, "depth": 1, "img_size": 280, "init_values": 1e-5}, num_register_tokens=4)
    state = model.state_dict()
    for name in ("pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"):
        assert abs(state[name].std().item() - 0.02) < 5e-4, name
        assert abs(state[name].mean().item()) < 5e-4, name
    assert state["cls_token"].abs().max() < 5e-6
    assert state["cls_token"].any()
    assert abs(state["register_tokens"].std().item() - 1e-6) < 2e-7
    assert not state["mask_token"].any()
    assert not any(state[name].any() for name in state if name.endswith("bias") and "patch" not in name)
    assert torch.equal(state["norm.weight"], torch.ones(64))
    assert torch.equal(state["blocks.0.ls2.gamma"], torch.full((64,), 1e-5))
    bound = (3 * 14 * 14) ** -0.5  # PyTorch's own convolution start
    assert bound * 0.99 < state["patch_embed.proj.weight"].abs().max() <= bound
    assert abs(state["patch_embed.proj.weight"].std().item() - bound / 3**0.5) < 5e-4


def test_meta_device_then_weights():
    with torch.device("meta"):
        model = VisionTransformer(**TINY, num_register_tokens=4, drop_path_rate=0.1, drop_path_uniform=False)
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(5)
    model.init_weights()
    here = VisionTransformer(**TINY, num_register_tokens=4)
    torch.manual_seed(5)
    here.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), here.parameters(), strict=True))
    x = torch.randn(2, 3, 42, 28)
    assert torch.equal(model.eval()(x), here.eval()(x))


def chunked(state, chunks=2, depth=4):
    """The names official training gives, blocks grouped in chunks."""
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        at = parts.index("blocks") if "blocks" in parts else None
        if at is not None:
            parts.insert(at + 1, str(int(parts[at + 1]) // (depth // chunks)))
        out[".".join(parts)] = value
    return out


def test_chunked_weights_load_strictly():
    model, other = tiny(), randomise(VisionTransformer(**TINY), seed=1)
    state = chunked(model.state_dict())
    assert "blocks.1.3.ls2.gamma" in state
    other.load_state_dict(state, strict=True)
    assert "blocks.1.3.ls2.gamma" in state, "the caller's dict is left alone"
    x = torch.randn(1, 3, 28, 28)
    assert torch.equal(model(x), other(x))


def test_chunked_weights_load_inside_another_module():
    student = torch.nn.ModuleDict({"backbone": randomise(VisionTransformer(**TINY), seed=1)})
    model = tiny()
    student.load_state_dict(chunked({f"backbone.{k}": v for k, v in model.state_dict().items()}), strict=True)
    assert torch.equal(student["backbone"].blocks[3].ls2.gamma, model.blocks[3].ls2.gamma)


def test_loading_drops_nothing_silently():
    model = tiny()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "blocks.4.norm1.weight": torch.zeros(64)})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({k: v for k, v in state.items() if k != "mask_token"})


def test_sizes_that_do_not_fit_are_named():
    model = tiny()
    with pytest.raises(
        ModelError, match=r"225x224 pixels are not a multiple of the patch size 14; .* 224x224 and 238x224$"
    ):
        model(torch.zeros(1, 3, 225, 224))
    with pytest.raises(ModelError, match=r"10x28 pixels .* 14x28$"):
        model(torch.zeros(1, 3, 10, 28))
    with pytest.raises(ModelError, match=r"shape \(1, 4, 28, 28\) do not fit; wanted \[images, 3 channels"):
        model(torch.zeros(1, 4, 28, 28))
    with pytest.raises(ModelError, match="do not fit"):
        model(torch.zeros(3, 28, 28))
    with pytest.raises(ModelError, match=r"masks of shape \(1, 5\) do not fit 1 images of 4 patches"):
        model.forward_features(torch.zeros(1, 3, 28, 28), torch.zeros(1, 5, dtype=torch.bool))
    with pytest.raises(ModelError, match="1 image batches with 2 masks"):
        model.forward_features([torch.zeros(1, 3, 28, 28)], [None, None])
    with pytest.raises(ModelError, match="0 image batches"):
        model.forward_features([])


def test_non_square_training_grid():
    model = tiny(img_size=(28, 56))
    assert model.pos_embed.shape == (1, 9, 64)
    x = torch.randn(2, 3, 28, 56)
    prenorm, _ = published_forward(model, x)  # adds the table as it is
    torch.testing.assert_close(model.forward_features(x)["x_prenorm"], prenorm, atol=1e-5, rtol=1e-5)
    turned = model.forward_features(torch.randn(2, 3, 56, 28))
    assert turned["x_norm_patchtokens"].shape == (2, 8, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_models_stay_half(dtype):
    model = tiny(num_register_tokens=1)
    x = torch.randn(2, 3, 42, 28)
    exact = model(x)
    out = model.to(dtype).forward_features(x.to(dtype), torch.zeros(2, 6, dtype=torch.bool))
    assert {v.dtype for k, v in out.items() if k != "masks"} == {dtype}
    error = (out["x_norm_clstoken"].float() - exact).abs().max()
    assert error < 8 * torch.finfo(dtype).eps * exact.abs().max()


def test_autocast_keeps_the_residual_stream_in_float32():
    model = tiny(drop_path_rate=0.5)
    x = torch.randn(4, 3, 42, 28)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.forward_features(x, torch.zeros(4, 6, dtype=torch.bool))
        assert out["x_prenorm"].dtype == torch.float32
        assert model.train().forward_features([x, x[:2]])[0]["x_prenorm"].dtype == torch.float32
    assert (out["x_norm_clstoken"] - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_a_trace_works_at_every_size(registers, no_shape_checks):
    """Warnings are errors here, so nothing of the example's size is frozen into the trace."""
    model = tiny(num_register_tokens=registers, interpolate_antialias=bool(registers), img_size=56)
    traced = torch.jit.trace(model, torch.randn(2, 3, 56, 56))
    for size in ((56, 56), (28, 28), (70, 42), (112, 112)):
        x = torch.randn(3, 3, *size)
        torch.testing.assert_close(traced(x), model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("registers", [0, 2])
def test_export_with_dynamic_sizes(registers, no_shape_checks):
    model = tiny(depth=2, num_register_tokens=registers, interpolate_antialias=bool(registers), img_size=56)
    x = torch.randn(2, 3, 56, 56)
    fixed = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(fixed(x), model(x), atol=1e-5, rtol=0)
    batch, h, w = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "h", "w"))
    sizes = {"x": {0: batch, 2: 14 * h, 3: 14 * w}}
    program = torch.export.export(model, (torch.randn(2, 3, 70, 84),), dynamic_shapes=sizes).module()
    for size in ((56, 56), (28, 28), (70, 42)):
        x = torch.randn(3, 3, *size)
        torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=0)


def as_it_is(model):
    pass


def compiled_for_one_shape(model):
    model.blocks[-1].takes_wanted = False


def with_a_block_of_its_own(model):
    class Own(Block):
        def forward(self, x, groups=None):
            return super().forward(x, groups)

    model.blocks[-1].__class__ = Own


def with_attention_of_its_own(model):
    class Own(Attention):
        def forward(self, x, groups=None):
            return super().forward(x, groups)

    model.blocks[-1].attn.__class__ = Own


def with_a_norm_of_all_tokens(model):
    class Centred(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x - x.mean(dim=-2, keepdim=True))

    model.norm.__class__ = Centred


def with_lora(model):
    assert add_lora(model, r"attn\.(qkv|proj)", 2, 4.0)
    randomise(model)


def half(model):
    model.bfloat16()


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize(
    "change",
    [
        *(as_it_is, compiled_for_one_shape, with_a_block_of_its_own, with_attention_of_its_own),
        *(with_a_norm_of_all_tokens, with_lora, half),
    ],
)
def test_chosen_tokens_are_those_of_all_features(registers, change):
    model = tiny(num_register_tokens=registers, drop_path_rate=0.4).train()
    change(model)
    dtype = model.cls_token.dtype
    crops = [torch.randn(3, 3, 56, 28, dtype=dtype), torch.randn(4, 3, 28, 28, dtype=dtype)]
    masks = [torch.rand(3, 8) < 0.4, None]
    some = [torch.tensor([0, 7, 8, 15, 23, 23]), torch.tensor([], dtype=torch.long)]
    torch.manual_seed(0)
    whole = model(crops, masks=masks, is_training=True)
    torch.manual_seed(0)
    found = model.chosen_tokens(crops, some, masks)
    near = {"atol": 0.05, "rtol": 0.05} if change is half else {}
    for (cls, patches), one, asked in zip(found, whole, some, strict=True):
        torch.testing.assert_close(cls, one["x_norm_clstoken"], **near)
        torch.testing.assert_close(patches, one["x_norm_patchtokens"].flatten(0, 1)[asked], **near)
    with pytest.raises(ModelError, match="do not fit"):
        model.chosen_tokens(crops, some, [masks[0][:, :2], None])
    with pytest.raises(ModelError, match="2 image batches with 1 masks"):
        model.chosen_tokens(crops, some, [None])


@pytest.mark.parametrize("patch", [-1, 8])
def test_chosen_patches_have_to_be_there(patch):
    with pytest.raises(ModelError, match=rf"there are patches 0 to 7, not \[3, {patch}\]"):
        tiny().chosen_tokens([torch.randn(2, 3, 28, 28)], [torch.tensor([3, patch])])


def test_chosen_tokens_of_a_subclass_are_those_of_its_own_features():
    class Doubled(VisionTransformer):
        def forward_features(self, x, masks=None):
            found = super().forward_features(x, masks)
            return [{**one, "x_norm_patchtokens": 2 * one["x_norm_patchtokens"]} for one in found]

    model = tiny().eval()
    crops, some = [torch.randn(2, 3, 28, 28)], [torch.tensor([1, 6])]
    ((cls, patches),) = model.chosen_tokens(crops, some)
    model.__class__ = Doubled
    ((same, doubled),) = model.chosen_tokens(crops, some)
    torch.testing.assert_close((same, doubled), (cls, 2 * patches))
