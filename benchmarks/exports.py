# SPDX-License-Identifier: Apache-2.0
"""Largest differences of exported models: trace, program and ONNX, at three sizes, by the model's own numbers.

python benchmarks/exports.py [--quick] [--to trace program onnx] [--model MODEL] [--depth 12] [--kinds plain]
                             [--json FILE]

Random weights of published width (ViT-S/14, a table of 518 pixels): plain, with registers, with SwiGLU; or those of
MODEL. Each is exported with free number, height and width, opened again by its own runtime, and compared on noise at
224 x 224, 518 x 518 and 224 x 308. `onnx-fp16`, `onnx-int8` and `aot` (a program compiled by AOTInductor) are asked for
by name. `--quick` takes two blocks of width 128. Formats whose packages are missing are left out and said. The last
line is a JSON object of the largest difference of each row.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from opendino.checkpoint.hub import load
from opendino.checkpoint.weights import save_weights
from opendino.errors import ConfigError
from opendino.export.graph import Graph, backbone_of
from opendino.export.onnx import opened as opened_by_onnxruntime
from opendino.export.program import opened as opened_by_torch
from opendino.export.shipping import ExportConfig, compare, export
from opendino.models.vision_transformer import VisionTransformer

SIZES = ((224, 224), (518, 518), (224, 308))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"num_register_tokens": 4, "interpolate_antialias": True, "interpolate_offset": 0.0},
    "SwiGLU": {"ffn_layer": "swiglufused"},
}
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "trace": (".pt", {"to": "trace"}),
    "program": (".pt2", {"to": "program"}),
    "onnx": (".onnx", {"to": "onnx"}),
    "onnx-fp16": (".onnx", {"to": "onnx", "precision": "fp16", "tolerance": float("inf")}),
    "onnx-int8": (".onnx", {"to": "onnx", "precision": "int8", "tolerance": float("inf")}),
    "aot": (".pt2", {"to": "program", "aot": True}),
}


def weights(folder: Path, kind: str, width: int, depth: int) -> str:
    """Random weights; a table of zeros would hide how it is resized."""
    torch.manual_seed(0)
    made = VisionTransformer(
        img_size=518, patch_size=14, embed_dim=width, depth=depth, num_heads=width // 64, init_values=1.0, **KINDS[kind]
    )
    torch.nn.init.normal_(made.pos_embed, std=0.5)
    save_weights(made, folder / kind)
    return str(folder / kind)


def differences(source: str, to: str, folder: Path) -> dict[str, float]:
    """Of one model in one format, by size."""
    suffix, settings = FORMATS[to]
    path, patch = folder / f"{to}-{Path(source).name}{suffix}", backbone_of(load(source)).patch_size
    config = ExportConfig(size=(4 * patch, 4 * patch), **settings)
    export(source, path, config)
    graph, random = Graph(load(source)).eval(), torch.Generator().manual_seed(2)
    onnx = config.to == "onnx"
    run = opened_by_onnxruntime(path, graph.outputs) if onnx else opened_by_torch(path, graph.outputs, config)
    return {
        f"{height}x{width}": compare(graph, run, torch.randn(1, 3, height, width, generator=random)).largest
        for height, width in SIZES
    }


def main() -> None:
    """Print a row for each format and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--to", nargs="*", default=["trace", "program", "onnx"], choices=list(FORMATS))
    parser.add_argument("--model", help="anything that opendino.load takes, in place of random weights")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    width, depth = (128, words.depth or 2) if words.quick else (384, words.depth or 12)
    found: dict[str, dict[str, float]] = {}
    named = words.model or f"width {width}, {depth} blocks"
    print(f"| {named} | {' | '.join(f'{h} x {w}' for h, w in SIZES)} |")
    print(f"|---|{'---:|' * len(SIZES)}")
    with tempfile.TemporaryDirectory() as place:
        for to in words.to:
            for kind in [Path(words.model).name] if words.model else words.kinds:
                try:
                    source = words.model or weights(Path(place), kind, width, depth)
                    row = differences(source, to, Path(place))
                except ConfigError as error:
                    print(f"| {to}, {kind} | left out: {error} |")
                    continue
                found[f"{to}, {kind}"] = row
                print(f"| {to}, {kind} | {' | '.join(f'{one:.1e}' for one in row.values())} |", flush=True)
    if words.json:
        words.json.write_text(json.dumps({"model": named, "largest": found}, indent=1) + "\n")
    print(json.dumps({name: max(row.values()) for name, row in found.items()}))


if __name__ == "__main__":
    main()
