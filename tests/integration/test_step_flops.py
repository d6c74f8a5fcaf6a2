# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/train_step.py` divides by, for TFLOP/s and MFU, is what torch counts in a step; so is memory."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opendino.data.collate import PretrainBatch
from opendino.data.masking import MaskConfig, batch_masks
from opendino.layers.attention import use_attention
from opendino.methods.dinov2 import DINOv2
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig
from opendino.models.presets import PRESETS
from opendino.models.vision_transformer import VisionTransformer

PLAN = Path(__file__).resolve().parents[2] / "benchmarks" / "plan.py"
IMAGES = 10


@pytest.fixture(scope="module")
def plan():
    spec = importlib.util.spec_from_file_location("plan_of_work", PLAN)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


PUBLISHED = {"prototypes": 131_072, "bottleneck": 384}, {"prototypes": 131_072, "bottleneck": 256}


@pytest.mark.parametrize(
    ("preset", "heads", "drop", "needed"),
    [
        *(
            ("vits14", [{"prototypes": 65_536}], drop, needed)
            for drop, needed in ((0.0, True), (0.3, True), (0.3, False))
        ),
        ("vitl14", PUBLISHED, 0.0, True),
        ("vits14", [{"prototypes": 4096, "layers": 1}, {"prototypes": 65_536, "hidden": 1024, "layers": 2}], 0.0, True),
    ],
)
def test_operations_of_a_step_are_those_that_torch_counts(plan, preset, heads, drop, needed, monkeypatch):
    """Forward and backward, published crops, on the meta device: 157.9 GFLOP an image for S/14, 2,018 for L/14."""
    heads = [plan.Head(**head) for head in heads]
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    masks = batch_masks(2 * IMAGES, (16, 16), MaskConfig(), np.random.default_rng(0))
    with torch.device("meta"):
        settings = [
            {
                "prototypes": one.prototypes,
                "hidden_dim": one.hidden,
                "bottleneck_dim": one.bottleneck,
                "nlayers": one.layers,
            }
            for one in heads
        ]
        dino = DINOConfig(**settings[0], in_blocks=False, needed_tokens=needed)
        ibot = IBOTConfig(**settings[-1], separate_head=len(heads) == 2)
        shape = PRESETS[preset] | {"img_size": 224}
        backbones = [VisionTransformer(**shape, drop_path_rate=rate) for rate in (drop, 0.0)]
        method = DINOv2(*backbones, DINOv2Config(dino=dino, ibot=ibot))
        crops = torch.empty(2 * IMAGES, 3, 224, 224), torch.empty(8 * IMAGES, 3, 98, 98)
    batch = PretrainBatch(*crops, *masks[:3], IMAGES, torch.arange(IMAGES)).to("meta")
    with FlopCounterMode(display=False) as counter:
        method(batch, 0.05).loss.backward()
    assert counter.get_total_flops() / IMAGES == pytest.approx(
        plan.step_flops(PRESETS[preset], heads, drop, all_tokens=not needed), rel=5e-3
    )


def test_what_blocks_keep_is_what_autograd_saves(plan):
    """Bytes of each token, channel and block in bfloat16, by hooks; the copies of weights in bfloat16 do not count."""

    def kept(depth):
        model = VisionTransformer(**PRESETS["vits14"] | {"depth": depth, "img_size": 224}).train()
        use_attention(model, "fused")
        weights, saved = {parameter.data_ptr() for parameter in model.parameters()}, {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address comes again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            model.forward_features(torch.randn(2, 3, 224, 224))
        return sum(size for size, _ in saved.values()) - 2 * sum(one.numel() for one in model.parameters())

    assert (kept(3) - kept(1)) / (2 * 257 * 384 * 2) == pytest.approx(plan.KEPT, rel=0.02)


def test_what_a_device_holds(plan):
    """By hand: g/14 with two published heads on 8 devices, 3,072 images in shares."""
    one = next(one for one in plan.TRAININGS if one.preset == "vitg14")
    matrices = 12 * 40 * 1536**2 + sum(1536 * 2048 + 2048**2 + 2048 * b + b * 131_072 for b in (384, 256))
    held, kept, again = plan.memory(one, 384, 8)
    assert held == pytest.approx(20 * matrices / 8)
    inputs = 384 * (2 * 257 + 8 * 50) * 1536
    logits = 4 * 384 * 131_072 * (78.8 + 86.8)
    assert kept == pytest.approx(0.6 * 40 * inputs * 40 + logits)
    assert again == pytest.approx(4 * inputs * 40 + 0.6 * 40 * inputs + logits)
    small = next(one for one in plan.TRAININGS if one.preset == "vits14")
    assert plan.memory(small, 1, 8)[0] == plan.memory(small, 1, 1)[0], "whole copies"
    assert plan.memory(small, 2, 8)[1] == 2 * plan.memory(small, 1, 8)[1]
