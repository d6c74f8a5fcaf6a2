# SPDX-License-Identifier: Apache-2.0
"""`opendino eval`: measure a backbone by a published protocol."""

import difflib
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from opendino.cli._words import find_own, split
from opendino.errors import ConfigError

SUMMARY = "measure a backbone: k-NN, linear, segmentation, depth, retrieval, health and others"
USAGE = """
usage: opendino eval knn    MODEL data.train=DIR data.val=DIR [key=value ...]
       opendino eval linear MODEL data.train=DIR data.val=DIR [tests.sources=[DIR,...]] [key=value ...]
       opendino eval logreg MODEL data.train=DIR data.val=DIR [key=value ...]
       opendino eval segment MODEL data.train=MASKED data.val=MASKED [segment.head=linear|ms|knn] [key=value ...]
       opendino eval depth  MODEL data.train=DEPTHS data.val=DEPTHS data.max_depth=METRES [key=value ...]
       opendino eval finetune MODEL data.train=DIR data.val=DIR out=NEW [finetune.mode=full|last|lora] [key=value ...]
       opendino eval retrieval MODEL data.queries=DIR data.database=DIR [key=value ...]
       opendino eval robust MODEL data.train=DIR data.val=DIR [robust.kinds=[fog,...]] [tests.sources=[DIR,...]]
       opendino eval correspond MODEL data=PAIRS.json [key=value ...]
       opendino eval health MODEL data=DIR [key=value ...]
       opendino eval drift  MODEL against=MODEL data=DIR [key=value ...]
       opendino eval table  FILE_OR_RUN [...] [out=FILE.md]

knn     the nearest training images vote, weighted by similarity; top-1 and top-5 for k = 10, 20, 100, 200
linear  52 linear classifiers on one pass of the backbone, 13 learning rates x {1, 4} blocks x {CLS, CLS + mean patch};
        the best on data.val is reported and measured on tests.sources; linear.augment=false is the quick way
logreg  L2 logistic regression in float64, its strength chosen on a tenth of the training images
segment semantic segmentation on frozen patches: a linear head, its multi-scale form, or nearest patches that vote;
        segment.weights=FILE reads a trained head, the published ones too
depth   monocular depth: depth.head=lin1, lin4 (default) or dpt; the range is that of the data, data.layout=nyu or kitti
        knows its own; depth.weights=FILE reads a trained head, the published ones too
finetune  trains a classifier and the backbone under it; out=NEW/model opens as Dinov2ForImageClassification
retrieval  mAP, recall and GAP by labels; data.ground_truth=FILE.json data.images=DIR as the revisited Oxford and Paris
robust  a linear classifier of clean images on fifteen corruptions in five severities, and on shifted test sets
correspond  PCK of points of one image that are found in another
health  rank, spread and norms of the features; needs no labels. Of a run also how its prototypes are used, from the
        newest checkpoint (heads=RUN for a copy of its weights); while it trains they are in metrics.jsonl, as watch/
drift   how far the features have moved from those of another model: cosine, CKA, common neighbours; needs no labels

table   results files side by side, as Markdown; out=FILE.md appends

MODEL   a run folder, a weights folder, a .pth or .safetensors file with official names, a published name; or a model of
        another library: timm:NAME, hf:NAME_OR_FOLDER, open_clip:ARCHITECTURE/PRETRAINED
DIR     a folder with one sub-folder a class, a manifest with a label column, or a Parquet file with image bytes;
        health takes any images
MASKED  a folder with images/ and masks/, a Parquet file with image and mask, or the root of ADE20k, Pascal VOC or
        Cityscapes
DEPTHS  a folder with images/ and depth/, a Parquet file with image and depth, or a .txt file of lines IMAGE DEPTH

A table is printed, and a JSON file written to RUN/eval for a run, else where out=DIR says. Features are kept beside it
for the next protocol (features.cache=off keeps none, features.cache=DIR keeps them elsewhere). Some settings:
  linear.iterations=2000 linear.batch_size=256 tests.class_mappings=[map.npy] tests.real=real.json
  knn.k=[10,20] knn.temperature=0.07 knn.feature=both knn.n_per_class=[1,5] knn.tries=3
  logreg.values=12 logreg.standardize=true
  data.value_range=[0,4095] (health: value_range=...; by default images are decoded as the run decoded its own)
  features.size=224 features.batch_size=128 features.precision=bf16 features.device=cpu
A recipe (a YAML file) may stand behind MODEL.
"""


def main(argv: list[str]) -> int:
    """Measure, print the table, keep the file."""
    if argv[:1] == ["table"]:
        from opendino.cli._eval_table import main as table

        return table(argv[1:])
    names, words = split(argv, most=3)
    if any(word.startswith("output_dir=") for word in words):
        raise ConfigError("output_dir: no such setting; did you mean out?")
    out = next((word.partition("=")[2] for word in reversed(words) if word.startswith("out=")), "")
    protocol, model, recipe = [*names, "", "", ""][:3]
    from opendino.eval import PROTOCOLS

    if protocol not in PROTOCOLS:
        close = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the protocols are {', '.join(PROTOCOLS)}, and table"
        said = f"opendino eval {protocol}: no such protocol" if protocol else "opendino eval: name a protocol"
        raise ConfigError(f"{said}; {hint}")
    if not model:
        raise ConfigError(f"opendino eval {protocol}: name a model: a run folder, a weights folder or a weights file")

    from opendino import logs
    from opendino.config import fields_of
    from opendino.config import load as load_config
    from opendino.distributed import together
    from opendino.eval.adapters import open_backbone
    from opendino.files import check_place

    logs.setup()
    place, config_class, _ = PROTOCOLS[protocol]
    module = import_module(place)
    settings = [word for word in words if not word.startswith("out=")]
    if not out and (Path(model) / "config.yaml").is_file():
        out = str(Path(model) / "eval")
    config_type = getattr(module, config_class)
    defaults = defaults_of(protocol, model, out, fields_of(config_type))
    with together():
        if out:
            check_place(Path(out), f"out = {out}")
        found = find_own(recipe, f"eval {protocol}") if recipe else None
        config = load_config(config_type, found, settings, defaults)
        backbone = open_backbone(model)
    source = {"source": model, "command": shlex.join(["opendino", "eval", *argv])}
    results = module.run(backbone, config, out=Path(out) if out else None, source=source)
    print(f"{protocol} of {model}, {results.seconds:.1f} s")
    print(results.table())
    print(f"written: {Path(out) / results.file_name()}" if out else "not written; give out=DIR to keep these figures")
    return 0


def defaults_of(protocol: str, model: str, out: str, known: Sequence[str]) -> dict[str, Any]:
    """Settings that a protocol takes from the model's own run and from where results go, of those that it knows."""
    from opendino.cli._decoding import decoding_of

    decoding = decoding_of(model, "" if protocol in ("health", "drift", "correspond") else "data.")
    if protocol in ("segment", "depth"):
        decoding.pop("data.orient", None)  # masks and depths lie on the pixels as they are stored
    if protocol == "health" and (Path(model) / "checkpoints").is_dir():
        decoding["heads"] = model
    defaults = decoding | ({"features.cache": str(Path(out) / "features")} if out else {})
    return {name: value for name, value in defaults.items() if name in known}
