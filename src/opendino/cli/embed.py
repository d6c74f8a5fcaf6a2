# SPDX-License-Identifier: Apache-2.0
"""`opendino embed`: the features of every image of a data set, on the disk."""

from pathlib import Path

from opendino.cli._words import as_settings, find_own, split
from opendino.errors import ConfigError

SUMMARY = "features of any images to Parquet or npy shards, continued where interrupted"
USAGE = """
usage: opendino embed DATA --model MODEL --out DIR [recipe.yaml] [key=value ...]

DATA    a folder (nested; odd files are skipped and listed), an image, a list (.txt), a manifest (.csv, .tsv, .parquet),
        or Parquet files that hold the images
MODEL   anything that opendino.load takes: a run, a folder or file of weights, a published name
DIR     shards, each with row, path, width, height, label and features of its images; give the same command again after
        an interruption and it continues: no image twice, none missing

Some settings:
  features=[cls,patch_mean,registers,patches]   which (default cls)
  layers=[5,11]          after which blocks, counted from 0 (default the last)
  fit=crop|pad|stretch|whole size=518           what the model sees; size must be a multiple of the patch
  format=npy dtype=float16 normalize=true rows=2048 batch_size=32 threads=2 precision=bf16 device=cuda
  merge=0.07             on a CPU: merge patches that look alike, for speed; other numbers, see docs/performance.md
  engine.workers=4       processes; engine.name=torchrun under torchrun; engine.name=ray on a Ray cluster
  overwrite=true         remove what other settings left in DIR

In Python: opendino.embed.embed(model, data, out, EmbedConfig(...)), and opendino.embed.read(out).
"""


def main(argv: list[str]) -> int:
    """Embed, and say what came out."""
    names, words = split(as_settings(argv, "model", "out"), most=2)
    own = {key: next((w.partition("=")[2] for w in words if w.startswith(f"{key}=")), "") for key in ("model", "out")}
    if not names or not all(own.values()):
        raise ConfigError("opendino embed: wanted DATA --model MODEL --out DIR; see --help")
    settings = [word for word in words if word.partition("=")[0] not in own]

    from opendino import logs
    from opendino.cli._decoding import decoding_of
    from opendino.config import load
    from opendino.distributed import is_main
    from opendino.embed import EmbedConfig, embed
    from opendino.embed.reading import skipped
    from opendino.stages.engines import met

    recipe = _recipe(names[1]) if len(names) == 2 else None
    config = load(EmbedConfig, recipe, settings, decoding_of(own["model"]))
    logs.setup()
    with met(config.engine):
        done = embed(own["model"], names[0], own["out"], config)
        if is_main():
            for one in skipped(done.folder)[:10]:
                print(f"skipped: {one['reason']}")
            more = f", {done.skipped} skipped (part-*.skipped.json)" if done.skipped else ""
            print(
                f"{done.images} image{'s' if done.images != 1 else ''}{more}"
                + ("" if done.made else "; nothing was left to do")
            )
            print(f"written: {done.folder}")
    return 0


def _recipe(word: str) -> Path:
    """The recipe that a second word names.

    Raises:
        ConfigError: it is no recipe, but perhaps a second data set.
    """
    if Path(word).exists() and Path(word).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{word}: one data set is taken at a time; give a folder, a list (.txt) or a mixture (.yaml)")
    return find_own(word, "embed")
