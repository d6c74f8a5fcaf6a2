# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view import attention
from opendino.view.attention import AttentionConfig


def model(**settings):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 4}
    return VisionTransformer(**(sizes | settings)).eval()


def test_weights_mix_the_values_into_what_the_layer_gives():
    backbone = model(num_register_tokens=2)
    images = torch.randn(1, 3, 12, 20)
    seen = {}
    block = backbone.blocks[1]
    block.attn.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], out=output))
    weights = attention.attention_of(backbone, images, [1])[1]
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 18))
    v = block.attn.qkv(seen["x"])[0, :, 32:].view(18, 4, 4)
    mixed = torch.einsum("aqk,kad->qad", weights, v).flatten(1)
    torch.testing.assert_close(block.attn.proj(mixed), seen["out"][0], atol=1e-5, rtol=1e-4)
    assert not backbone.blocks[1].attn.qkv._forward_hooks


def test_rollout_of_uniform_and_of_own_attention():
    T = 5
    torch.testing.assert_close(attention.rollout([torch.eye(T).expand(3, T, T)] * 4), torch.eye(T))
    uniform = torch.full((3, T, T), 1 / T)
    once = attention.rollout([uniform])
    torch.testing.assert_close(once, 0.5 * torch.eye(T) + 0.5 / T)
    torch.testing.assert_close(attention.rollout([uniform, uniform]), once @ once)


def test_a_row_of_rollout_and_the_mean_of_heads():
    backbone, images = model(num_register_tokens=1), torch.randn(1, 3, 12, 20)
    whole = attention.attention_of(backbone, images, [0, 1])
    means = attention.attention_of(backbone, images, [0, 1], mean=True)
    for layer in (0, 1):
        torch.testing.assert_close(means[layer], whole[layer].mean(dim=0, keepdim=True))
    weights = [whole[0], whole[1]]
    for token in (0, 1):
        torch.testing.assert_close(attention.rollout_of(weights, token), attention.rollout(weights)[token])
    torch.testing.assert_close(attention.rollout_of([means[0], means[1]]), attention.rollout(weights)[0])


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    image = np.full((60, 60, 3), 0.4, np.float32)
    monkeypatch.setattr(attention, "_WEIGHTS", 4 * 101**2)  # of four heads: CLS and a hundred patches
    assert attention.as_input(model(), image, 40)[1] == (10, 10)
    with pytest.raises(ConfigError, match="size = 48: makes 12 x 12 patches of this image; give size=40 or less"):
        attention.as_input(model(), image, 48)


def test_the_strongest_hold_the_mass():
    values = torch.tensor([0.1, 0.5, 0.05, 0.35])
    torch.testing.assert_close(attention.strongest(values, 0.6), torch.tensor([0.0, 0.5, 0.0, 0.35]))
    torch.testing.assert_close(attention.strongest(values, 0.5), torch.tensor([0.0, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(attention.strongest(values, 1.0), values)


@pytest.mark.parametrize(
    ("settings", "panels"),
    [({}, 1 + 1 + 4 + 1), ({"heads": False, "rollout": False}, 2), ({"token": "registers", "layer": 0}, 1 + 2 + 1)],
)
def test_panels(settings, panels):
    row = attention._row(model(num_register_tokens=2), np.full((20, 30, 3), 0.4, np.float32),
                         AttentionConfig(**settings))  # fmt: skip
    assert len(row) == panels


@pytest.mark.parametrize(
    ("settings", "message"), [({"layer": 2}, "has 2 blocks"), ({"token": "registers"}, "the model has none")]
)
def test_what_the_model_has_not(settings, message):
    with pytest.raises(ConfigError, match=message):
        attention.run(model(), ["x.png"], AttentionConfig(**settings))
    with pytest.raises(ConfigError, match="a share from 0 to 1"):
        AttentionConfig(mass=60.0)
