# SPDX-License-Identifier: Apache-2.0
"""`opendino export`: a model in the form that other programs run, compared before it is kept."""

from opendino.cli._words import as_settings, split
from opendino.errors import ConfigError

SUMMARY = "a model for transformers, libtorch, torch.export or ONNX, run again and compared"
USAGE = """
usage: opendino export MODEL --to {hf,trace,program,onnx} OUT [key=value ...]

hf       a folder for transformers and its hub, with a card
trace    a TorchScript trace (OUT.pt), for libtorch
program  a torch.export program (OUT.pt2)
onnx     an ONNX graph (OUT.onnx); pip install 'opendino[onnx]'

MODEL is anything that opendino.load takes, classifiers too. Graphs take normalised images [B, C, H, W] and give cls,
patches, registers, logits, segmentation and depth where there are such. What was written is opened again by its own
runtime and compared on noise and on images=, at several sizes; the largest differences are printed, and above the
tolerance nothing is kept.

  size='[224, 224]'       of the example; with dynamic=batch or none the only size, its position table resized now
  dynamic=all|batch|none  what may differ: number, height and width; the number; nothing
  head=FILE               a trained classifier, segmentation head (eval segment) or depth head (eval depth) on top
  aot=true                (program) machine code of this processor, by AOTInductor; needs a C++ compiler
  opset=18..23 precision=fp16 (onnx: fp16 or int8) batch=2 images=photos tolerance=1e-4
"""


def main(argv: list[str]) -> int:
    """Export, and say how it compares."""
    names, words = split(as_settings(argv, "to"), most=2)
    if len(names) != 2 or not any(word.startswith("to=") for word in words):
        raise ConfigError("opendino export: wanted MODEL --to {hf,trace,program,onnx} OUT; see --help")
    from opendino import logs
    from opendino.config import load
    from opendino.export.shipping import ExportConfig, export, largest, told

    logs.setup()
    config = load(ExportConfig, None, words)
    done = export(names[0], names[1], config)
    for line in (*told(done.differences), *done.notes):
        print(line)
    print(f"largest of all {largest(done.differences):.1e}, tolerance {config.allowed:g}")
    opset = f", opset {config.opset}" if config.to == "onnx" else ""
    print(f"written: {done.path} ({config.to}{opset}; {', '.join(done.outputs)})")
    return 0
