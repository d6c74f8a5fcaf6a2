# SPDX-License-Identifier: Apache-2.0
"""A folder for the Hugging Face hub: weights, config, image processor, and a card; weights by `checkpoint/conversion`.

Where transformers is installed, its own class opens the folder too and has to give the same, on noise and on images, at
several sizes.
"""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from importlib import import_module
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
            found, more = _by_transformers(out, config)
            differences, notes = differences + found, notes + more
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


def _by_transformers(folder: Path, config: ExportConfig) -> tuple[list[Difference], list[str]]:
    """Transformers' own class against ours, both from the folder, with transformers' rule for positions.

    Where transformers has no place for the model (a table that is not square, an MLP of a fraction of the width), the
    class of `opendino.hf` stands in, and a note says so.

    Raises:
        ConversionError: neither opens the folder.
    """
    with _quiet():
        try:
            return list(_compared(folder, config, "transformers", "hf")), []
        except Exception as error:  # transformers raises what its own checks raise
            reason = str(error).strip().splitlines()[0]
            note = f"transformers' own class cannot run it ({reason}); opendino.hf can, and was compared in its place"
        try:
            return list(_compared(folder, config, "opendino.hf", None)), [note]
        except Exception as error:
            raise ConversionError(f"{folder}: transformers cannot open it ({reason}); nothing was written") from error


def _compared(folder: Path, config: ExportConfig, library: str, rule: str | None) -> Iterator[Difference]:
    classes = import_module(library)
    ours: Any = load(str(folder)) if rule is None else load(str(folder), positions=rule)
    backbone, classifies = backbone_of(ours), isinstance(ours, LinearClassifier)
    kind = classes.AutoModelForImageClassification if classifies else classes.AutoModel
    theirs: Any = kind.from_pretrained(str(folder)).eval()
    name, size = "logits" if classifies else "last_hidden_state", ours.input_spec.size
    for images_kind, images in trials(ours, (size[0], size[1]), config):
        with torch.no_grad():
            found = getattr(theirs(images), name)
            wanted = ours(images) if classifies else _tokens(backbone.forward_features(images))
        largest = float((found - wanted).abs().max())
        yield Difference(tuple(images.shape), f"{name} by {library}", largest, images_kind)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar for the weights of one file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokens(found: Any) -> Tensor:  # noqa: ANN401  a FeatureDict
    return torch.cat([found["x_norm_clstoken"][:, None], found["x_norm_regtokens"], found["x_norm_patchtokens"]], dim=1)
