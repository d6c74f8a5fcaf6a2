# SPDX-License-Identifier: Apache-2.0
"""`opendino demo`: learn from images without labels in minutes, and see what was learned."""

import signal
import sys
from typing import TYPE_CHECKING

from opendino.cli._words import find_recipe, split

if TYPE_CHECKING:
    from opendino.train.demo import Demonstration

SUMMARY = "learn from images without labels in minutes, and see what was learned"
USAGE = """
usage: opendino demo [seed=0] [output_dir=runs/demo] [images=0] [key=value ...]

Pretrains a small model on the garments that come with the package, without their labels, then compares raw pixels,
the untrained and the trained model on test images. Writes output_dir/result.json and output_dir/report.html.

seed        of everything that is drawn
output_dir  gets data/ (the images), seed_N/ (a run as of `opendino pretrain`), result.json and report.html
images      most images of each part, for a quick look; 0 takes all
key=value   any setting of `opendino pretrain`, over the recipe demo_garments (opendino config show demo_garments)

After an interruption the same command continues; once finished, it starts anew.
"""


def main(argv: list[str]) -> int:
    """Run the demonstration and print its table."""
    _, words = split(argv, most=0)
    from opendino import logs
    from opendino.config import fields_of, load
    from opendino.train.demo import DemoConfig, demo
    from opendino.train.loop import Stopped

    own = [word for word in words if word.partition("=")[0] in fields_of(DemoConfig)]
    config = load(DemoConfig, None, own)
    logs.setup()
    try:
        found = demo(find_recipe("demo_garments"), config, [word for word in words if word not in own])
    except Stopped as stopped:
        print(f"stopped and saved in {config.output_dir}; the same command continues", file=sys.stderr)
        return 130 if stopped.signal == signal.SIGINT else 143
    _report(found)
    print(f"\nreport: {config.output_dir}/report.html   figures: {config.output_dir}/result.json")
    return 0


def _report(found: "Demonstration") -> None:
    from opendino.train.demo_report import HEALTH, met, note_lines, table_rows

    measured = found.measured
    print(
        f"\n{len(measured.pair.val):,} test images; {found.outcome.images_seen:,} images seen without labels; "
        f"seed {found.config.seed}; {found.seconds:.0f} s in all"
    )
    print(f"{'top-1, %':<38}  {'k-NN':>9}  {'logistic regression':>20}")
    for name, knn, logreg in table_rows(measured):
        print(f"{name:<38}  {knn:>9.1f}  {logreg:>20.1f}")
    for line in note_lines(measured):
        print(line)
    print(f"\n{'health':<38}  {'untrained':>9}  {'trained':>20}")
    for name, (what, _) in HEALTH.items():
        print(f"{what:<38}  {measured.health_random[name]:>9.3f}  {measured.health[name]:>20.3f}")
    print()
    for one in measured.margins():
        unit = f" {one.unit}" if one.unit else ""
        print(f"{met(one.met, found.whole):<7}  {one.what}: {one.shown()}{unit}, wanted {one.wish()}")
