# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/train_step.py` divides by, for TFLOP/s and MFU, is what torch counts in a step."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opendino.data.collate import PretrainBatch
from opendino.data.masking import MaskConfig, batch_masks
from opendino.methods.dinov2 import DINOv2
from opendino.methods.settings import DINOConfig, DINOv2Config
from opendino.models.presets import PRESETS
from opendino.models.vision_transformer import VisionTransformer

PLAN = Path(__file__).resolve().parents[2] / "benchmarks" / "plan.py"
IMAGES = 10


@pytest.mark.parametrize(
    ("preset", "prototypes", "drop", "needed"),
    [
        *(("vits14", 65_536, drop, needed) for drop, needed in ((0.0, True), (0.3, True), (0.3, False))),
        ("vitl14", 131_072, 0.0, True),
    ],
)
def test_operations_of_a_step_are_those_that_torch_counts(preset, prototypes, drop, needed, monkeypatch):
    """Forward and backward, published crops, on the meta device: 157.9 GFLOP an image for S/14, 2,001 for L/14."""
    spec = importlib.util.spec_from_file_location("plan_of_work", PLAN)
    plan = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plan)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    masks = batch_masks(2 * IMAGES, (16, 16), MaskConfig(), np.random.default_rng(0))
    with torch.device("meta"):
        head = DINOConfig(prototypes=prototypes, in_blocks=False, needed_tokens=needed)
        shape = PRESETS[preset] | {"img_size": 224}
        backbones = [VisionTransformer(**shape, drop_path_rate=rate) for rate in (drop, 0.0)]
        method = DINOv2(*backbones, DINOv2Config(dino=head))
        crops = torch.empty(2 * IMAGES, 3, 224, 224), torch.empty(8 * IMAGES, 3, 98, 98)
    batch = PretrainBatch(*crops, *masks[:3], IMAGES, torch.arange(IMAGES)).to("meta")
    with FlopCounterMode(display=False) as counter:
        method(batch, 0.05).loss.backward()
    assert counter.get_total_flops() / IMAGES == pytest.approx(
        plan.step_flops(PRESETS[preset], prototypes, drop, all_tokens=not needed), rel=5e-3
    )
