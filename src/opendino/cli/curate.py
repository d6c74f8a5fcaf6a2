# SPDX-License-Identifier: Apache-2.0
"""`opendino curate`: from a heap of images to a curated training manifest."""

import difflib
from typing import Any

from opendino.cli._foreign import refuse_other
from opendino.cli._words import find_recipe, split
from opendino.errors import ConfigError

SUMMARY = "choose training images: index, embed, deduplicate, decontaminate, retrieve, cluster, balance"
USAGE = """
usage: opendino curate RECIPE [key=value ...]
       opendino curate index.sources=[DIR,...] embed.model=MODEL out=DIR [key=value ...]
       opendino curate STAGE [RECIPE] [key=value ...]     stops after that stage

stages  index, dedup, decontaminate, embed, retrieve, cluster, prune, balance, manifest, report; each is a folder of
        out=DIR, does nothing where its results are whole and current, and continues after any interruption

index.sources  folders, lists, tars, Parquet files, patterns of the last two, folders that save_to_disk wrote, or
               hf:REPOSITORY
embed.model    any backbone that `opendino eval` measures: features for retrieval and clusters
copy.model     a copy detector for dedup and decontaminate: thumbnail (needs no weights), or torchscript:FILE with
               copy.run_code=true for SSCD and others

Some settings:
  references=[DIR,...]   evaluation sets whose images must not be in the result
  queries=[DIR,...]      sets that images like theirs are wanted of
  dedup.threshold=0.6 dedup.keep=largest decontaminate.threshold=0.45 cluster.levels=[5000,1000] balance.size=100000
  mix.parts=[balance,retrieve] mix.weights=[0.7,0.3] mix.tar=1000
  search.engine=hnsw     approximate neighbours by faiss, above a million images on a CPU
  engine.workers=4       processes; engine.name=torchrun under torchrun, engine.name=ray engine.gpus=1 on a Ray cluster

The results are DIR/manifest/manifest.parquet, for opendino pretrain data=, and DIR/report.html
"""


def main(argv: list[str]) -> int:
    """Curate, and say what each stage came to."""
    names, words = split(argv, most=2)
    from opendino.curate.pipeline import STAGES, CurateConfig, run

    stage = "report"
    if names and names[0] in STAGES:
        stage = names.pop(0)
    elif len(names) == 2:
        raise _no_stage(names[0], STAGES)
    from opendino import logs
    from opendino.config import load
    from opendino.distributed import is_main

    try:
        recipe = find_recipe(names[0]) if names else None
    except ConfigError:
        if difflib.get_close_matches(names[0], STAGES, n=1):  # one word, and neither: rather a stage misspelt
            raise _no_stage(names[0], STAGES) from None
        raise
    if recipe is not None:
        refuse_other(recipe, "curate")
    config = load(CurateConfig, recipe, words)
    logs.setup()

    def told(name: str, counts: dict[str, Any]) -> None:
        if is_main():
            print(f"{name.ljust(14)} {_line(counts)}", flush=True)

    folder = run(config, stage, told)
    if is_main():
        print(f"written: {folder}" if stage != "report" else f"written: {folder / 'report.html'}")
    return 0


def _no_stage(name: str, stages: tuple[str, ...]) -> ConfigError:
    close = difflib.get_close_matches(name, stages, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the stages are {', '.join(stages)}"
    return ConfigError(f"opendino curate {name}: no such stage; {hint}")


def _line(counts: dict[str, Any]) -> str:
    """Counts in a line; nested ones are in the stage's done.json."""
    return "  ".join(f"{name} {value}" for name, value in counts.items() if not isinstance(value, list | dict))
