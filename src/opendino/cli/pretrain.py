# SPDX-License-Identifier: Apache-2.0
"""`opendino pretrain`: train a backbone from images alone, or continue a run."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from opendino.cli._words import find_training, split

if TYPE_CHECKING:
    from opendino.train.plan import Plan
    from opendino.train.pretrain import Outcome

T = TypeVar("T")

SUMMARY = "train a backbone from images alone, or continue a run"
USAGE = """
usage: opendino pretrain data=DIR output_dir=RUN [key=value ...]
       opendino pretrain RECIPE data=DIR output_dir=RUN [key=value ...]

data        a folder of images, a list of files, a manifest (CSV, Parquet), or a Parquet file with image bytes
output_dir  folder of the run: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, weights/; the same command
            continues it after an interruption, with the very same losses
RECIPE      a YAML file, or the name of a shipped recipe (opendino config ls)

Without a recipe the settings are chosen from the number and size of the images and from this machine, and printed
with the reasons. Words win over the recipe, the recipe over what would be chosen. A recipe that names a model
(student.preset) is complete: published defaults fill what it leaves out, and only what concerns the machine and the
kind of pixels is chosen.
  train.iterations=20000 train.batch_size=128 crops.local_number=6 optim.base_lr=2e-3 seed=1
`opendino config show` prints every setting.

Several processes share a run by torchrun --nproc-per-node 8 -m opendino pretrain ..., or on a cluster by
  launch=slurm nodes=4 gpus=8 hours=24 partition=P     also launch=local gpus=2; see docs/how-to/train-at-scale.md
"""


def main(argv: list[str]) -> int:
    """Plan, say what was chosen, train."""
    names, words = split(argv)
    recipe = find_training(names[0], "pretrain") if names else None
    from opendino import logs
    from opendino.distributed import together
    from opendino.train.plan import plan
    from opendino.train.pretrain import pretrain

    logs.setup()
    with together():
        planned = plan(recipe, words)
    _announce(planned)
    return carry_out(planned, lambda chosen: pretrain(planned.config, chosen, planned.dataset), _report)


def carry_out(planned: "Plan", train: Callable[[dict[str, Any]], T], report: Callable[[T, str], None]) -> int:
    """Train, and say what came of it, or that a signal stopped it.

    Args:
        planned: the training.
        train: does it, given the values of the settings that were chosen.
        report: says what came of it, given that and the data's name.

    Returns:
        Exit code of the command.
    """
    from opendino.train.loop import Stopped

    try:
        outcome = train({key: choice.value for key, choice in planned.choices.items()})
    except Stopped as stopped:
        print(f"stopped and saved in {planned.config.output_dir}; the same command continues", file=sys.stderr)
        return 128 + stopped.signal
    report(outcome, planned.config.data)
    return 0


def _announce(planned: "Plan") -> None:
    config = planned.config
    if planned.choices and not planned.resumed:
        width = max(map(len, planned.choices))
        print("chosen for this data and this machine (key=value overrides):")
        for key, choice in planned.choices.items():
            value = list(choice.value) if isinstance(choice.value, tuple) else choice.value
            print(f"  {key.ljust(width)}  {str(value).ljust(14)}  {choice.reason}")
    print(f"{'continuing' if planned.resumed else 'training'} in {config.output_dir}", flush=True)


def _report(outcome: "Outcome", data: str) -> None:
    from opendino.train.progress import duration

    of_all = f"{outcome.steps} steps, {outcome.images_seen} images seen"
    if outcome.trained:
        print(f"done: {of_all}, {duration(outcome.seconds)} this time")
    else:
        print(f"finished already: {of_all}; nothing is left to train, and these are its last figures")
    for name, value in outcome.figures.items():
        print(f"  {name.ljust(28)}  {'not finite' if value is None else f'{value:.4g}'}")
    print(f"weights: {outcome.output_dir / 'weights'}")
    print(f"look:    opendino view pca {outcome.output_dir} {data}")
    print(f"measure: opendino eval health {outcome.output_dir} data={data}   (with labels: opendino eval --help)")
