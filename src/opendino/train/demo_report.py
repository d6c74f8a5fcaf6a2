# SPDX-License-Identifier: Apache-2.0
"""The page that the demonstration writes: table, curves, crops, PCA maps, nearest neighbours, all in one file."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from opendino.logs import JsonLines
from opendino.view import pca, report
from opendino.view.report import Html, Mark

if TYPE_CHECKING:
    from opendino.train.demo import Demonstration, Measured

LABELS = {"pixels": "raw pixels", "random": "untrained backbone", "trained": "trained teacher"}
HEALTH = {
    "prototypes_share": ("share of the prototypes in use", "most; one or few after a collapse"),
    "entropy_of_mean": ("entropy of the mean prediction / ln K", "above 0.9; near 0 after a collapse"),
    "mean_entropy": ("mean entropy of the predictions / ln K", "below the line above"),
    "effective_rank": ("effective rank of the features", "tens; 1 to 2 after a collapse"),
    "mean_cosine": ("mean cosine between images", "near 0; towards 1 after a collapse"),
}
"""Figures of `eval/health.py` that are shown: what they are, and what is healthy."""

ONLINE = {"knn": "k-NN", "linear": "linear classifier"}
"""Curves of looks with labels."""

GLANCES = {
    "Without labels: directions and prototypes": {
        "effective_rank": "effective rank",
        "prototypes_used": "prototypes used",
    },
    "Without labels: from 0 to 1": {
        "entropy_of_mean": "entropy of the mean / ln K",
        "mean_entropy": "mean entropy / ln K",
        "mean_cosine": "mean cosine",
        "std": "deviation of CLS",
        "patch_std": "deviation of patches",
    },
    "Student from teacher: KL, nats": {"teacher_kl": "KL"},
}
"""Curves of `train/glance.py`: title, then figure and its name; a collapse shows in each."""

PROTOCOLS = {"knn": "k-NN", "logreg": "logistic regression"}

_IMAGES, _SHOWN_NEIGHBOURS = 8, 8


def write_report(path: Path, demo: "Demonstration") -> Path:
    """Write the page; it needs nothing but itself.

    Args:
        path: of the HTML file.
        demo: what was found.
    """
    sections = [_figures(demo), _curves(demo), _crops(demo), _maps(demo.measured), _neighbours(demo.measured)]
    lead = (
        f"A small DINOv2 was trained on {len(demo.measured.pair.train):,} images without labels, seed "
        f"{demo.config.seed}, {demo.outcome.images_seen:,} images seen; labels came in for the figures only. All "
        f"figures are of {len(demo.measured.pair.val):,} test images that were not trained on."
    )
    footer = (
        "Garments: Fashion-MNIST, copyright 2017 Zalando SE, MIT licence; each placed at a fixed random place, size "
        "and brightness on a black canvas."
    )
    return report.write(path, report.page("opendino demo", sections, lead=lead, footer=footer))


def table_rows(measured: "Measured") -> list[tuple[str, float, float]]:
    """Name, k-NN and logistic regression of each row, percent."""
    return [(label, measured.knn[row], measured.logreg[row]) for row, label in LABELS.items()]


def note_lines(measured: "Measured") -> list[str]:
    """What a reader of the table should know, a line each."""
    return [f"note: {LABELS[one.row]}, {PROTOCOLS[one.protocol]}: {one.text}" for one in measured.notes]


def _figures(demo: "Demonstration") -> Html:
    measured = demo.measured
    header = ("features", "k-NN, top-1 %", "logistic regression, top-1 %")
    margins = [(one.what, one.shown(), one.wish(), met(one.met, demo.whole)) for one in measured.margins()]
    healthy = [
        (what, measured.health_random[name], measured.health[name], good) for name, (what, good) in HEALTH.items()
    ]
    return report.section(
        "What was learned",
        report.table(header, table_rows(measured), strong_rows=(2,)),
        *(report.paragraph(line) for line in note_lines(measured)),
        report.table(("margin", "found", "wanted", ""), margins),
        report.table(("health", "untrained", "trained", "healthy"), healthy, digits=3),
        text="k-NN: 20 neighbours, cosine, temperature 0.07. Logistic regression: standardised features, strength "
        "chosen on a tenth of the training images. Features: CLS token and mean patch token side by side.",
    )


def met(kept: bool, whole: bool = True) -> str:
    """Whether a margin was kept, to read; of a run that was cut down nothing was promised."""
    return ("met" if kept else "NOT MET") if whole else "cut down, not judged"


def _curves(demo: "Demonstration") -> Html:
    records = JsonLines(demo.outcome.output_dir / "metrics.jsonl").read()
    batch = demo.config.train.batch_size
    losses = sorted({key for record in records for key in record if key == "loss" or key.startswith("loss/")})
    curves = {name: _points(records, name, batch) for name in losses}
    figures = {key: None for record in records for key in record if key.startswith(("knn/top1", "linear/top1"))}
    votes = {ONLINE[figure.partition("/")[0]]: _points(records, figure, batch) for figure in figures}
    levels = {f"{LABELS[row]}, k-NN": demo.measured.knn[row] for row in ("pixels", "random")}
    parts = [report.figure_curves(curves, title="Loss and its terms", x_label="images seen", y_label="loss")]
    if votes:
        title = "Test images while training, by the teacher's features"
        parts.append(report.figure_curves(votes, title=title, x_label="images seen", y_label="%", levels=levels))
    for title, names in GLANCES.items():
        curves = {what: _points(records, f"watch/{name}", batch) for name, what in names.items()}
        if any(places for places, _ in curves.values()):
            parts.append(report.figure_curves(curves, title=title, x_label="images seen"))
    return report.section("Training", *parts, text="The loss is the number that was back-propagated.")


def _points(records: list[dict], name: str, batch: int) -> tuple[list[int], list[float]]:
    found = [(record["step"] * batch, record[name]) for record in records if record.get(name) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _crops(demo: "Demonstration") -> Html:
    file = demo.outcome.output_dir / "first_batch.png"
    if not file.exists():
        return report.section("Crops", text="The run drew no picture of its first batch (log.picture).")
    with Image.open(file) as picture:
        shown = report.image(
            picture.copy(),
            alt="crops of eight images of the first batch",
            caption="Each row one image: two global crops, patches hidden from the student tinted; then local crops.",
        )
    return report.section("What the networks see", shown)


def _maps(measured: "Measured") -> Html:
    images = [measured.pair.val.image(row) for row in _one_of_each(measured)]
    config = pca.PcaConfig(background="keep", side=96, smooth=True)
    grids = [report.image_grid([pca.shown(image) for image in images], alts=_names(measured), columns=_IMAGES)]
    for row, backbone in measured.backbones.items():
        maps = pca.colour_maps([pca.patch_features(backbone, image) for image in images], config)
        painted = [pca.paint(image, colours, config) for image, colours in zip(images, maps, strict=True)]
        alts = [f"PCA map of a {name}" for name in _names(measured)]
        grids.append(report.image_grid(painted, alts=alts, columns=_IMAGES, title=LABELS[row]))
    text = "The first component of the patch features parts garment and ground; the next three colour the garment."
    return report.section("PCA of patch features", *grids, text=text)


def _neighbours(measured: "Measured") -> Html:
    grids, rows = [], _one_of_each(measured)
    labels, classes = measured.pair.train_labels, measured.pair.classes
    for query in rows:
        wanted = int(measured.pair.val_labels[query])
        pictures, captions = [pca.shown(measured.pair.val.image(query))], [classes[wanted]]
        marks: list[Mark] = [""]
        for near in measured.nearest["trained"][query, :_SHOWN_NEIGHBOURS].tolist():
            pictures.append(pca.shown(measured.pair.train.image(near)))
            captions.append(classes[int(labels[near])])
            marks.append("right" if int(labels[near]) == wanted else "wrong")
        grids.append(
            report.image_grid(
                pictures, alts=captions, captions=captions, marks=marks, columns=1 + _SHOWN_NEIGHBOURS, width=60
            )
        )
    text = "The first picture of each row is a test image, the others are its nearest training images, nearest first."
    return report.section("Nearest neighbours of test images", *grids, text=text)


def _one_of_each(measured: "Measured") -> list[int]:
    """The first test image of each of the first classes; chosen by label alone, not by looks."""
    labels = measured.pair.val_labels.numpy()
    return [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:_IMAGES]]


def _names(measured: "Measured") -> list[str]:
    return [measured.pair.classes[int(measured.pair.val_labels[row])] for row in _one_of_each(measured)]
