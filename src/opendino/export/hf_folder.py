# SPDX-License-Identifier: Apache-2.0
"""A folder for the Hugging Face hub: weights, config, image processor, and a card; weights by `checkpoint/conversion`.

Where transformers is installed, its own class opens the folder too and has to give the same, on noise and on images, at
several sizes.
"""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opendino.checkpoint.conversion import ConvertConfig, Report, convert
from opendino.checkpoint.hub import load
from opendino.errors import ConversionError
from opendino.export.card import card
from opendino.export.graph import backbone_of
from opendino.export.shipping import Difference, ExportConfig, Exported, trials
from opendino.files import write_whole
from opendino.models.classifier import LinearClassifier

_WITHOUT = "transformers is not installed: the folder was read back by opendino alone"


def write(source: str, out: Path, config: ExportConfig) -> Exported:
    """Convert, add the card, and compare with transformers' own model.

    Raises:
        ConversionError: transformers cannot open the folder, or computes something else; the folder is removed.
    """
    allowed = config.allowed
    report = convert(source, out, ConvertConfig(to="hf", tolerance=allowed))
    model = load(source)
    # What `convert` looks at: the source and the folder, on an image of waves.
    shape = (1, backbone_of(model).in_chans, *report.size)
    of = f"{', '.join(report.compared)}, read back by opendino"
    differences = [Difference(shape, of, report.difference, "waves")]
    notes = [*_own_rule(report), *report.notes]
    try:
        if importlib.util.find_spec("transformers") is None:
            notes.append(_WITHOUT)
        else:
            differences += _by_transformers(out, config)
        worst = max(differences, key=lambda one: one.largest if one.largest == one.largest else float("inf"))
        if not worst.largest <= allowed:
            raise ConversionError(
                f"{out}: {worst.of} of images {list(worst.images)} differ by {worst.largest:.1e}, more than "
                f"tolerance={allowed:g}; nothing was written"
            )
        write_whole(out / "README.md", card(model, source, differences))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    logits = ("logits",) if isinstance(model, LinearClassifier) else ()
    return Exported(out, logits or ("last_hidden_state", "pooler_output"), differences, tuple(notes))


def _own_rule(report: Report) -> Iterator[str]:
    if report.own_rule_difference > report.difference:
        yield (
            "transformers resizes the position table by its own rule, and is compared under that: at "
            f"{report.own_rule_size[0]} x {report.own_rule_size[1]} its features differ from the source's by "
            f"{report.own_rule_difference:.1e}; opendino.load(..., positions=...) chooses"
        )


def _by_transformers(folder: Path, config: ExportConfig) -> Iterator[Difference]:
    """Transformers' own class against ours, both from the folder, with transformers' rule for positions."""
    from transformers import AutoModel, AutoModelForImageClassification

    ours: Any = load(str(folder), positions="hf")
    backbone, classifies = backbone_of(ours), isinstance(ours, LinearClassifier)
    size = (ours.input_spec.size[0], ours.input_spec.size[1])
    try:
        theirs: Any = (AutoModelForImageClassification if classifies else AutoModel).from_pretrained(str(folder)).eval()
    except Exception as error:  # transformers raises what its own checks raise
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{folder}: transformers cannot open it ({reason}); nothing was written") from error
    name = "logits" if classifies else "last_hidden_state"
    for kind, images in trials(ours, size, config):
        with torch.no_grad():
            found = getattr(theirs(images), name)
            wanted = ours(images) if classifies else _tokens(backbone.forward_features(images))
        yield Difference(tuple(images.shape), f"{name} by transformers", float((found - wanted).abs().max()), kind)


def _tokens(found: Any) -> Tensor:  # noqa: ANN401  a FeatureDict
    return torch.cat([found["x_norm_clstoken"][:, None], found["x_norm_regtokens"], found["x_norm_patchtokens"]], dim=1)
