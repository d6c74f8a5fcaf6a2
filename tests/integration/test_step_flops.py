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


def saved_bytes(work, *modules):
    """Bytes that autograd saves of `work`; the modules' weights do not count, nor do their copies in bfloat16."""
    weights = {one.data_ptr() for module in modules for one in module.parameters()}
    copied = {one.shape for module in modules for one in module.parameters() if one.ndim == 2}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        shape = tensor.shape if tensor.is_contiguous() else tensor.t().shape if tensor.ndim == 2 else ()
        copy = tensor.dtype == torch.bfloat16 and shape in copied and storage.nbytes() == 2 * tensor.numel()
        if storage.data_ptr() not in weights and not copy:
            saved[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address comes again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        work()
    return sum(size for size, _ in saved.values())


@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_what_blocks_keep_is_what_autograd_saves(plan, ffn, drop):
    """Bytes of each token, channel and block in bfloat16."""

    def kept(depth):
        shape = PRESETS["vits14"] | {"depth": depth, "img_size": 224, "ffn_layer": ffn, "drop_path_rate": drop}
        model = VisionTransformer(**shape).train()
        use_attention(model, "fused")
        crops = [torch.randn(10, 3, 224, 224), torch.randn(40, 3, 98, 98)]
        return saved_bytes(lambda: model.forward_features(crops, [None, None]), model)

    tokens = 10 * 257 + 40 * 50
    assert (kept(3) - kept(1)) / (2 * tokens * 384) == pytest.approx((1 - drop) * plan.KEPT[ffn], rel=0.02)


@pytest.mark.parametrize("fsdp", [False, True], ids=["logits in blocks", "whole logits"])
def test_what_a_pass_keeps_is_what_autograd_saves(plan, fsdp):
    """ViT-S/14, a head and both losses; embedding, last norm and layers of the head, 5 % here, are not in the plan."""
    one = plan.Training("vits14", 8, 16_384, (256,), 0.3, fsdp)
    shape, images = PRESETS["vits14"] | {"img_size": 224}, 5
    torch.manual_seed(0)
    backbones = [VisionTransformer(**shape, drop_path_rate=rate) for rate in (0.3, 0.0)]
    dino = DINOConfig(prototypes=16_384, in_blocks=not fsdp, needed_tokens=False)
    method = DINOv2(*backbones, DINOv2Config(dino=dino, ibot=IBOTConfig(prototypes=16_384)))
    use_attention(method, "fused")
    masks = batch_masks(2 * images, (16, 16), MaskConfig(), np.random.default_rng(0))
    crops = torch.randn(2 * images, 3, 224, 224), torch.randn(8 * images, 3, 98, 98)
    batch = PretrainBatch(*crops, *masks[:3], images, torch.arange(images))
    found = saved_bytes(lambda: method(batch, 0.05).loss, method)
    assert plan.memory(one, images, 1)[1] == pytest.approx(found, rel=0.08)


def test_what_a_device_holds(plan):
    """Whole copies are as large on any number of devices, shares are not; what a pass keeps goes with its images."""
    small, giant = (next(one for one in plan.TRAININGS if one.preset == name) for name in ("vits14", "vitg14"))
    assert plan.memory(small, 1, 8)[0] == plan.memory(small, 1, 1)[0]
    assert plan.memory(giant, 1, 8)[0] == pytest.approx(20 * 1.232e9 / 8, rel=1e-3)
    assert plan.memory(small, 2, 8)[1:] == pytest.approx([2 * one for one in plan.memory(small, 1, 8)[1:]])
