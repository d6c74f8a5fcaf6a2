# SPDX-License-Identifier: Apache-2.0
"""`opendino distill`: train small backbones on what a frozen large one says, or continue such a run."""

import json
from collections.abc import Sequence

from opendino.cli._words import find_training, split
from opendino.cli.pretrain import _announce, _report, carry_out
from opendino.config import parse_override
from opendino.errors import ConfigError

SUMMARY = "train a small backbone on what a large one says"
USAGE = """
usage: opendino distill teacher=SRC student=vits14 data=DIR output_dir=RUN [key=value ...]
       opendino distill RECIPE teacher=SRC data=DIR output_dir=RUN [key=value ...]

teacher     a run folder, whose heads are learned from in the published way (no masks, no stochastic depth, all patches
            of both global crops); a training checkpoint of the official code; or anything that opendino.load takes,
            whose CLS and patch tokens are learned then. It is frozen and not copied into the run.
student     a preset (student.embed_dim=64 and so on change it), or several that share the teacher's passes:
            students=[vits14, vitb14]; the first one's weights are RUN/weights, the others' RUN/students/NAME/weights
data        as in opendino pretrain
output_dir  folder of the run; the same command continues it, with the same teacher only

Without a recipe the settings follow from the teacher, the images and this machine, and are printed with the reasons.
  distill.targets=features distill.feature_loss=cosine distill.resize=448 train.iterations=20000
The run's weights are an average of the student, whose pace is teacher.momentum.
"""


def main(argv: list[str]) -> int:
    """Plan, say what was chosen, train."""
    names, words = split(argv)
    words = spelled_out(words)
    recipe = find_training(names[0], "distill") if names else None
    from opendino import logs
    from opendino.distributed import together
    from opendino.train.distill import DistillRunConfig, distill, plan_distill

    logs.setup()
    with together():
        planned = plan_distill(recipe, words)
    assert isinstance(planned.config, DistillRunConfig)
    _announce(planned)
    config = planned.config
    return carry_out(planned, lambda chosen: distill(config, chosen, planned.dataset), _report)


def spelled_out(words: Sequence[str]) -> list[str]:
    """`teacher=`, `student=` and `students=` as the settings that they stand for.

    Raises:
        ConfigError: `students` is no list of presets.
    """
    found: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "teacher":
            found.append(f"distill.teacher={value}")
        elif key == "student":
            found.append(f"student.preset={value}")
        elif key == "students":
            found += _students(word)
        else:
            found.append(word)
    return found


def _students(word: str) -> list[str]:
    _, given = parse_override(word)
    given = given if isinstance(given, list) else []
    entries = [{"preset": entry} if isinstance(entry, str) else entry for entry in given]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"'{word}': wanted a list of presets, such as students=[vits14, vitb14]")
    first, *others = entries
    of_first = (
        f"student.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in first.items()
    )
    return [*of_first, f"distill.also={json.dumps(others)}"]
