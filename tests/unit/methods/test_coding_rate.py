# SPDX-License-Identifier: Apache-2.0
import math
from collections import deque
from itertools import islice

import numpy as np
import pytest
import torch

from opendino.data.collate import PretrainBatch
from opendino.data.masking import MaskConfig, batch_masks
from opendino.errors import ConfigError
from opendino.losses.coding_rate import coding_rate
from opendino.methods.coding_rate import CodingRate
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig, KoLeoConfig
from opendino.models.vision_transformer import VisionTransformer

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.5}
HEAD = {"hidden_dim": 16, "bottleneck_dim": 8}


def batch(images=6):
    found = batch_masks(2 * images, (4, 4), MaskConfig(), np.random.default_rng(0))
    return PretrainBatch(
        global_crops=torch.randn(2 * images, 3, 16, 16),
        local_crops=torch.randn(2 * images, 3, 8, 8),
        masks=found.masks,
        mask_indices=found.indices,
        masks_weight=found.weights,
        images=images,
        ids=torch.arange(images),
    )


def method(ibot=1.0, separate_head=False, **more):
    torch.manual_seed(0)
    config = DINOv2Config(
        dino=DINOConfig(objective="coding_rate", **HEAD, **more),
        ibot=IBOTConfig(loss_weight=ibot, separate_head=separate_head, **HEAD),
        koleo=KoLeoConfig(loss_weight=0.0),
    )
    return CodingRate(VisionTransformer(**SHAPE), VisionTransformer(**SHAPE), config)


@pytest.mark.parametrize("settings", [{}, {"ibot": 0.0}, {"separate_head": True}])
def test_terms_sum_to_the_loss_and_reach_all_that_learns(settings):
    model, images = method(**settings), batch()
    loss, terms = model(images, 0.04)
    assert sum(terms.values()).item() == loss.item()
    loss.backward()
    without = {name for name, part in model.student.named_parameters() if part.grad is None}
    assert without == (set() if settings.get("ibot", 1.0) else {"backbone.mask_token"} & without)
    assert not any("last_layer" in name for name in model.state_dict()), "there are no prototypes"
    assert all(part.grad is None for part in model.teacher.parameters())


def test_the_terms_by_their_definition():
    model, images = method(coding_weight=2.0, coding_eps=0.25), batch()
    with torch.no_grad():
        views = model.student_views(images)
        terms = model(images, 0.04).terms
        teacher = model.teacher["backbone"](images.global_crops, is_training=True)["x_norm_clstoken"]
        wanted = model.teacher["projector"].bottleneck(teacher).unflatten(0, (2, 6))
    torch.testing.assert_close(views.global_logits.norm(dim=-1), torch.ones(2, 6))
    swapped = 1 - (views.global_logits * wanted.flip(0)).sum(-1).mean()
    assert terms["dino_global"].item() == pytest.approx(swapped.item() * 2 / 6, rel=1e-4)
    rate = sum(coding_rate(crop, 0.25) for crop in views.global_logits).item() / 2
    assert terms["coding_rate"].item() == pytest.approx(-2.0 * (8 + 6) / (8 * 6) * rate, rel=1e-4)


def test_the_temperature_is_nothing_to_it():
    model, images = method(), batch()
    assert model(images, 0.04).loss.item() == model(images, 0.4).loss.item()


def rates_of_training(weight):
    """Coding rate of six features after each step, for as long as it is asked for."""
    model, images = method(coding_weight=weight), batch()
    optimizer = torch.optim.AdamW(model.student.parameters(), 2e-2)
    while True:
        optimizer.zero_grad()
        model(images, 0.04).loss.backward()
        optimizer.step()
        model.update_teacher(0.9)
        with torch.no_grad():
            yield coding_rate(model.student_views(images).global_logits[0]).item()


def test_training_keeps_features_apart():
    """Cosines alone draw all images to one point; with the rate they leave it while views agree.

    The point is a saddle then: how long the way out takes goes with the logarithm of how near to it training came, so
    the weights to begin with (which other releases of torch draw otherwise) and the order of float32 sums decide about
    20 steps more or less, and about single steps afterwards. So it is asked whether, not when.
    """
    # Six features of 8 numbers, eps 0.5: the eigenvalues of their products times 8 / (6 * 0.5), each plus 1.
    one_point = math.log(1 + 8 / 3 * 6) / 2
    one_apart = (math.log(1 + 8 / 3 * 5) + math.log(1 + 8 / 3 * 1)) / 2  # five alike, one at a right angle
    without = list(islice(rates_of_training(0.0), 40))
    assert without[20:] == pytest.approx([one_point] * 20, abs=0.01)
    last = deque(maxlen=10)
    for rate in islice(rates_of_training(1.0), 200):
        last.append(rate)
        if len(last) == 10 and sum(last) / 10 > one_apart:
            return
    pytest.fail(f"after 200 steps the rate is still {rate:.2f}, where {one_point:.2f} is a single point")


def test_what_it_cannot_do_is_said():
    with pytest.raises(ConfigError, match=r"dino\.loss_weight = 0 leaves"):
        CodingRate(
            VisionTransformer(**SHAPE), VisionTransformer(**SHAPE), DINOv2Config(dino=DINOConfig(loss_weight=0.0))
        )
