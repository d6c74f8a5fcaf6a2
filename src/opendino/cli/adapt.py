# SPDX-License-Identifier: Apache-2.0
"""`opendino adapt`: train on from a run or from published weights, at another resolution or on other images."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from opendino.cli._words import find_training, recipes, split
from opendino.cli.pretrain import _announce, carry_out
from opendino.cli.pretrain import _report as report_training
from opendino.errors import ConfigError

if TYPE_CHECKING:
    from opendino.train.adapt import Adapted

SUMMARY = "train on from a run or from published weights: higher resolution, other images, other channels"
USAGE = """
usage: opendino adapt INIT resolution=518 output_dir=RUN [key=value ...]      the high-resolution phase
       opendino adapt INIT data=DIR output_dir=RUN [key=value ...]            continued training on other images
       opendino adapt INIT data=DIR output_dir=RUN adapt.lora=8               the same with LoRA, for few images
       opendino adapt RECIPE INIT data=DIR output_dir=RUN [key=value ...]

INIT        a run folder: goes on with its student, teacher, heads and centres, on its images if none are named;
            or anything that opendino.load takes: a folder or file of weights, facebook/dinov2-base; also init=INIT
data        as for opendino pretrain; images of other channels than the weights' are fitted (adapt.channels)
output_dir  folder of the new run; the same command continues it; drift.json says how far the features moved
RECIPE      a YAML file, or the name of a shipped recipe (opendino config ls)

Settings are taken from the run that it starts from, or chosen, and printed with the reasons; words win:
  adapt.head_steps=0.1 adapt.start=weights   new heads, alone for the first tenth; weights without heads do so anyway
  train.iterations=2000 optim.base_lr=1e-4 optim.layerwise_decay=0.8 teacher.momentum=[0.999,1]
  adapt.held_out=DIR drift.limit=0.3         images and limit of the drift report
"""


def main(argv: list[str]) -> int:
    """Plan, say what was chosen, train, say how far the features moved."""
    names, words = split(argv, most=2)
    recipe, init = _told_apart(names)
    if init:
        words.append(f"init={init}")
    from opendino import logs
    from opendino.distributed import together
    from opendino.train.adapt import adapt
    from opendino.train.adapt_config import typed
    from opendino.train.adapt_plan import UNSAID, plan_adaptation

    logs.setup()
    with together():
        planned = plan_adaptation(recipe, words)
    origin = typed(planned.config).origin
    of_run = (
        f"checkpoint of step {origin.step}, with its heads" if origin.kind == "checkpoint" else "weights without heads"
    )
    print(f"starting from {origin.source}: {of_run}, sha256 {origin.sha256[:12]}...")
    own = {key: choice for key, choice in planned.choices.items() if choice.reason not in UNSAID}
    _announce(dataclasses.replace(planned, choices=own))
    return carry_out(planned, lambda chosen: adapt(typed(planned.config), chosen, planned.dataset), _report)


def _report(adapted: "Adapted", data: str) -> None:
    report_training(adapted.outcome, data)
    if adapted.drift:
        print("compared with the start (1 where nothing has moved):")
    for name, value in adapted.drift.items():
        print(f"  {name.ljust(28)}  {value:.4f}")
    for sentence in adapted.warnings:
        print(f"warning: {sentence}", file=sys.stderr)


def _told_apart(names: list[str]) -> tuple[Path | None, str]:
    """A recipe and a start among the words without `=`."""
    shipped = {name.rpartition("/")[2] for name in recipes()} | recipes().keys()
    named = [name for name in names if name in shipped or name.endswith((".yaml", ".yml"))]
    starts = [name for name in names if name not in named]
    for several, what in ((named, "recipes"), (starts, "starts")):
        if len(several) > 1:
            raise ConfigError(f"{several[0]} and {several[1]} are two {what}, and one is taken; leave one out")
    return find_training(named[0], "adapt") if named else None, starts[0] if starts else ""
