# SPDX-License-Identifier: Apache-2.0
"""`opendino convert`: weights in another library's format, compared before they are kept."""

from typing import TYPE_CHECKING

from opendino.cli._words import as_settings, split
from opendino.errors import ConfigError

if TYPE_CHECKING:
    from opendino.checkpoint.conversion import Report

_LIBRARY = {"official": "the official code", "hf": "transformers", "timm": "timm"}
SUMMARY = "weights to official, Hugging Face or timm format, proved equal"
USAGE = """
usage: opendino convert SOURCE --to {official,hf,timm} OUT [key=value ...]

SOURCE is anything that opendino.load takes: a run, a folder, a .pth or .safetensors file, a published name.
OUT is new: official writes a .pth, a .safetensors or a folder of opendino's; hf a folder for transformers; timm a
folder for timm's "local-dir:" or a file. It is read back; its features on a fixed image, also with masked patches, and
its logits are compared with the source's, and the largest difference is printed; above the tolerance nothing is kept.

  tolerance=1e-5          largest difference that is accepted
  num_heads=N             for a bare file whose width is not a multiple of 64
  img_size='[H, W]'       for a bare file whose position table is not square
  layers=1|4              classifier of an official _lc name
"""


def main(argv: list[str]) -> int:
    """Convert, and say what was done."""
    names, settings = split(as_settings(argv, "to"), most=2)
    if len(names) != 2 or not any(word.startswith("to=") for word in settings):
        raise ConfigError("opendino convert: wanted SOURCE --to {official,hf,timm} OUT; see --help")
    from opendino.checkpoint.conversion import ConvertConfig, convert
    from opendino.config import load

    report = convert(names[0], names[1], load(ConvertConfig, None, settings))
    for line in describe(report):
        print(line)
    return 0


def describe(report: "Report") -> list[str]:
    """What a conversion did, for people."""
    from opendino.checkpoint.convert._table import some

    height, width = report.size
    there = f"{report.target} ({report.target_format})"
    lines = [f"{report.source} ({report.source_format}) -> {there}, {report.tensors} tensors"]
    if report.dropped:
        lines.append(f"left out, {report.target_format} has no place for it: {some(report.dropped)}")
    if report.filled:
        lines.append(f"not in the source, set to its starting value: {some(report.filled)}")
    *others, last = report.compared
    what = f"{', '.join(others)} and {last}" if others else last
    lines.append(f"{what} on a fixed {height}x{width} image: largest difference {report.difference:.1e}")
    if report.own_rule_difference > report.difference:
        height, width = report.own_rule_size
        lines.append(
            f"{_LIBRARY[report.target_format]} resizes the position table by its own rule: at {height}x{width} its "
            f"users see features that differ by {report.own_rule_difference:.1e}; "
            "opendino.load(..., positions=...) chooses"
        )
    return [*lines, *report.notes]
