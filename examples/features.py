# SPDX-License-Identifier: Apache-2.0
"""Features of one image in ten lines: python examples/features.py runs/mine photo.jpg"""

import sys
from pathlib import Path

import torch

import opendino
from opendino.data.decode import decode
from opendino.data.transforms import EvalTransform


def main(model: str, image: str) -> dict[str, torch.Tensor]:
    backbone = opendino.load(model)  # a run, a folder, a .pth or .safetensors file, or a name such as dinov2_vits14
    spec = backbone.input_spec
    side = min(spec.size[0], 224)
    transform = EvalTransform(side, None, spec.mean, spec.std, spec.channels)
    pixels = transform(decode(Path(image), spec.channels))[None]
    with torch.inference_mode():
        features = backbone.forward_features(pixels)
    return {"cls": features["x_norm_clstoken"], "patches": features["x_norm_patchtokens"]}


if __name__ == "__main__":
    for name, tensor in main(*sys.argv[1:3]).items():
        print(name, tuple(tensor.shape))
