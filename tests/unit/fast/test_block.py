# SPDX-License-Identifier: Apache-2.0
"""The fast block against the plain one, of every kind."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opendino.fast import block as fast
from opendino.fast.block import FastBlock, Products, parts_of
from opendino.layers.block import Block


def random_block(**settings):
    block = Block(32, 4, **settings).eval()
    for name, parameter in block.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "gamma" in name else 0.0, std=0.2)
    return block.requires_grad_(False)


KINDS = {
    "mlp": {"init_values": 1.0},
    "no layer scale": {},
    "no biases": {"qkv_bias": False, "proj_bias": False, "ffn_bias": False, "init_values": 1.0},
    "swiglu": {"ffn_layer": "swiglu", "init_values": 1.0},
    "identity": {"ffn_layer": "identity", "init_values": 1.0},
    "identity, no layer scale": {"ffn_layer": "identity"},
    "drop path": {"drop_path": 0.5},
}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens(kind, dtype, close):
    block, x = random_block(**KINDS[kind]), torch.randn(3, 11, 32)
    before = x.clone()
    found = FastBlock(parts_of(block), Products(dtype))(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, block(x), atol=close * 5, rtol=close)
    assert torch.equal(x, before)


def test_few_at_a_time_is_all_at_once(monkeypatch):
    block, x = FastBlock(parts_of(random_block()), Products(torch.float32)), torch.randn(5, 7, 32)
    wanted = block(x)
    monkeypatch.setattr(fast, "TOKENS_AT_ONCE", 15)
    torch.testing.assert_close(block(x), wanted)


def test_tokens_of_a_large_image_are_fed_forward_in_parts(monkeypatch):
    monkeypatch.setattr(fast, "TOKENS_FED", 4)
    plain, fed = random_block(init_values=1.0), []
    block = FastBlock(parts_of(plain), Products(torch.float32))
    block.feed.register_forward_pre_hook(lambda _, given: fed.append(given[0].shape[1]))
    for tokens, parts in ((3, [3]), (7, [7]), (8, [4, 4]), (14, [5, 5, 4])):
        x = torch.randn(2, tokens, 32)
        torch.testing.assert_close(block(x), plain(x), atol=1e-5, rtol=1e-5)
        assert fed == parts
        fed.clear()


def test_parts_are_of_nearly_the_same_size():
    """Of 2,048 tokens at once; the memory of a pass is that of its largest part."""
    for images, tokens, most in ((8, 257, 4), (7, 257, 7), (15, 257, 5), (32, 257, 7), (3, 3000, 1), (0, 5, 1)):
        assert fast.images_at_once(torch.empty(images, tokens, 1)) == most


def test_packed_crops():
    block = random_block(init_values=1.0)
    xs = [torch.randn(2, 7, 32), torch.randn(3, 4, 32)]
    packed = torch.cat([x.flatten(0, 1) for x in xs])
    found = FastBlock(parts_of(block), Products(torch.float32))(packed, ((2, 7), (3, 4)))
    torch.testing.assert_close(found, torch.cat([block(x).flatten(0, 1) for x in xs]), atol=1e-5, rtol=1e-5)


def test_other_layers_are_not_taken_for_plain_ones():
    class Adapted(torch.nn.Linear):
        """A layer with something on top."""

    block = random_block()
    assert parts_of(block) is not None
    block.attn.qkv = Adapted(32, 96)
    assert parts_of(block) is None
    assert parts_of(torch.nn.Identity()) is None


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_first_tokens_are_those_of_the_whole_block(kind, dtype, close, monkeypatch):
    block, x = random_block(**KINDS[kind]), torch.randn(5, 7, 32)
    wanted = block(x)[:, :2]
    for last in (True, False):
        made = FastBlock(parts_of(block), Products(dtype), last=last)
        for at_once in (2048, 15):  # all, or two images at a time
            monkeypatch.setattr(fast, "TOKENS_AT_ONCE", at_once)
            found = made.first_tokens(x, 2)
            torch.testing.assert_close(found, wanted, atol=close * 5, rtol=close)
            # bfloat16 rounds what is summed in another order
            torch.testing.assert_close(found, made(x)[:, :2], atol=close, rtol=close / 5)


def test_first_tokens_cost_what_they_need(monkeypatch):
    """Of 3 x 7 tokens of 32 channels, keys and values; of 3 x 1, queries, output and MLP: 24 D^2 operations in all."""
    monkeypatch.setattr(fast.onednn, "pays", lambda *_: False)  # whose products nobody counts
    made = FastBlock(parts_of(random_block()), Products(torch.float32), last=True)
    with FlopCounterMode(display=False) as counted:
        made.first_tokens(torch.randn(3, 7, 32), 1)
    assert counted.get_total_flops() == 2 * 32 * 32 * (3 * 7 * 2 + 3 * (1 + 1 + 8))
