# SPDX-License-Identifier: Apache-2.0
"""The peer of `step_cpu.py`: a training step of lightly-train 0.18, in a Python of its own.

    python benchmarks/lightly_step.py PROTOTYPES fp32|bf16 BATCH

lightly-train is under the AGPL: it is measured, and nothing of ours needs it. The step is its own `training_step_impl`
on noise, its gradients' clipping, its optimizer and its averaged teacher, with the sizes of `step_cpu.py`. It answers
each line on its standard input with the seconds of one step.
"""

import argparse
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch

CLIP = 3.0


def build(prototypes: int, batch: int) -> tuple[Any, Any]:
    """Its method for ViT-S/14 and its optimizer."""
    from lightly_train._methods.dinov2.dinov2 import DINOv2  # pyrefly: ignore[missing-import]
    from lightly_train._models.dinov2_vit.dinov2_vit_package import (  # pyrefly: ignore[missing-import]
        DINOv2ViTPackage,
    )
    from lightly_train._models.embedding_model import EmbeddingModel  # pyrefly: ignore[missing-import]

    backbone = DINOv2ViTPackage.get_model("vits14-noreg", model_args={"drop_path_rate": 0.3}, load_weights=False)
    settings = DINOv2.method_args_cls()(
        output_dim=prototypes, center_method="sinkhorn_knopp", student_freeze_last_layer_steps=0
    )
    choice = DINOv2.optimizer_args_cls("auto")()
    settings.resolve_auto(scaling_info=None, optimizer_args=choice, wrapped_model=None)
    method = DINOv2(
        method_args=settings,
        optimizer_args=choice,
        embedding_model=EmbeddingModel(DINOv2ViTPackage.get_model_wrapper(backbone)),
        global_batch_size=batch,
        num_input_channels=3,
    )
    method.trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=1000, max_epochs=1)
    method.student_embedding_model.train()
    return method, method.configure_optimizers()[0][0]


def step(method: Any, optimizer: Any, views: list[torch.Tensor], half: bool) -> float:
    """Seconds of a step: processor time for one thread."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = method.training_step_impl({"views": views}, 0).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], CLIP)
    method.on_before_optimizer_step(optimizer)
    optimizer.step()
    from lightly_train._methods.dinov2.dinov2 import update_momentum  # pyrefly: ignore[missing-import]

    update_momentum(method.student_embedding_model, method.teacher_embedding_model, m=0.99)
    update_momentum(method.student_head, method.teacher_head, m=0.99)
    return clock() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prototypes", type=int)
    parser.add_argument("dtype", choices=["fp32", "bf16"])
    parser.add_argument("batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    method, optimizer = build(asked.prototypes, asked.batch)
    views = [torch.randn(asked.batch, 3, side, side) for side in (224,) * 2 + (98,) * 8]
    print("ready", flush=True)
    for _ in sys.stdin:
        print(step(method, optimizer, views, asked.dtype == "bf16"), flush=True)


if __name__ == "__main__":
    main()
