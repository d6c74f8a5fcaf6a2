# SPDX-License-Identifier: Apache-2.0
"""Stage 8: one HTML page of what curation did: counts, what was thrown away, copies side by side, clusters, balance.

It reads what the stages left and makes nothing new, so it may be written again at any time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from opendino.curate._features import Rows
from opendino.curate.balance import entropy
from opendino.curate.dedup import doubtful
from opendino.curate.index import read_index
from opendino.curate.mix import MANIFEST
from opendino.data.datasets.pointers import PointerDataset
from opendino.data.decode import Decoded
from opendino.errors import DataError
from opendino.stages.folder import counts_of, parts_of, plan_of
from opendino.view.report import Html, image_grid, page, paragraph, section, table, write

_SIDE = 96  # pixels of a picture on the page
_GROUPS, _IN_GROUP = 8, 6
_CLUSTERS, _IN_CLUSTER = 12, 8


@dataclass(frozen=True)
class _Pictures:
    """Images of an index by row, small."""

    index: Path
    image_column: str

    def grid(self, rows: Rows, captions: Sequence[str], title: str) -> Html:
        """Some images side by side; rows in any order."""
        order = np.argsort(rows, kind="stable")
        places = read_index(self.index, np.unique(rows), ["source", "key"])
        images = PointerDataset.of(places, image_column=self.image_column)
        at = np.searchsorted(places["row"].to_numpy(), rows)
        small = {int(number): _small(images, int(at[number])) for number in order}
        keys = places["key"].to_pylist()
        return image_grid(
            [small[number] for number in range(len(rows))],
            alts=[keys[place] for place in at.tolist()],
            captions=list(captions),
            title=title,
            width=_SIDE,
        )


def _small(images: PointerDataset, row: int) -> Image.Image:
    try:
        picture: Decoded = images.image(row)
    except DataError:
        return Image.new("L", (_SIDE, _SIDE), 128)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray((picture[:, :, 0] * 255).astype(np.uint8))
    picture = picture.copy()
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def run(out: Path, image_column: str = "") -> Path:
    """Write `out/report.html` from the stages that are there.

    Raises:
        DataError: the index is not there, or the page cannot be written.
    """
    pictures = _Pictures(out / "index", image_column)
    counts_of(out / "index")
    made = {name: counts_of(out / name) for name in _ORDER if (out / name / "done.json").is_file()}
    parts = [_overview(made), _set_aside(out, made)]
    if "dedup" in made:
        parts.append(_copies(out / "dedup", made["dedup"], pictures))
    if "decontaminate" in made:
        parts.append(_leaks(out / "decontaminate", made["decontaminate"], pictures))
    if "balance" in made:
        parts += [_balance(out, made["balance"]), _clusters(out, pictures)]
    html = page("Curation", parts, lead=f"What came of {out.name}, stage by stage.")
    there = out / "report.html"
    # A finished curation can be looked at on a disk that takes no more.
    return there if _says(there, html) else write(there, html)


def _says(path: Path, html: Html) -> bool:
    try:
        return path.read_text(encoding="utf-8") == html
    except (OSError, ValueError):
        return False


_ORDER = (
    "index", "copy_embed", "dedup", "decontaminate", "embed", "retrieve", "cluster", "prune", "balance", "manifest"
)  # fmt: skip


def _overview(made: dict[str, dict[str, Any]]) -> Html:
    rows = []
    for name, counts in made.items():
        into = counts.get("images", counts.get("pool"))
        left = counts.get("kept", counts.get("usable", counts.get("images")))
        rest = {key: value for key, value in counts.items() if key not in ("images", "pool", "kept", "usable")}
        said = ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in rest.items() if isinstance(value, int | float)
        )
        rows.append((name, into, left, said))
    return section("Stages", table(("stage", "images", "left", "what else"), rows))


def _set_aside(out: Path, made: dict[str, dict[str, Any]]) -> Html:
    reasons = list(made["index"]["set_aside"].items())
    if "decontaminate" in made:
        reasons += [(f"near to {name}", n) for name, n in made["decontaminate"]["dropped_for_set"].items()]
    if "dedup" in made:
        reasons.append(("near copies", made["dedup"]["dropped"]))
    examples = []
    for path in parts_of(out / "index"):
        found = pq.read_table(path, columns=["key", "reason"]).to_pydict()
        examples += [(key, reason) for key, reason in zip(found["key"], found["reason"], strict=True) if reason]
        if len(examples) >= 20:
            break
    shown = [table(("reason", "images"), reasons)]
    shown += (
        [table(("image", "why"), examples[:20], caption="The first files that could not be used")] if examples else []
    )
    return section("Thrown away", *shown)


def _copies(folder: Path, counts: dict[str, Any], pictures: _Pictures) -> Html:
    found = pq.read_table(folder / "copies.parquet").to_pydict()
    rows, component, kept = (np.array(found[name]) for name in ("row", "component", "kept"))
    if not len(rows):
        return section("Near copies", paragraph("None was found."))
    groups, sizes = np.unique(component, return_counts=True)
    grids = []
    # The largest, and of equals the first.
    for group in groups[np.lexsort([groups, -sizes])][:_GROUPS]:
        mine = np.flatnonzero(component == group)
        mine = mine[np.argsort(~kept[mine], kind="stable")][:_IN_GROUP]
        captions = ["kept" if kept[at] else "dropped" for at in mine]
        grids.append(pictures.grid(rows[mine], captions, f"{int((component == group).sum())} copies"))
    doubt = doubtful(counts, plan_of(folder)["parameters"]["threshold"])
    warned = [paragraph(f"Please look: {doubt}.")] if doubt else []
    return section("Near copies", *warned, *grids, text="The largest groups; the image that was kept comes first.")


def _leaks(folder: Path, counts: dict[str, Any], pictures: _Pictures) -> Html:
    found = pq.read_table(folder / "leaks.parquet").to_pydict()
    rows = np.array(found["row"][: _GROUPS * 2], dtype=np.int64)
    said = [table(("evaluation set", "images dropped"), list(counts["dropped_for_set"].items()))]
    if len(rows):
        captions = ["near" if direct else "by a chain" for direct in found["direct"][: len(rows)]]
        said.append(pictures.grid(rows, captions, "Images of the pool that were dropped"))
    return section("Evaluation images", *said)


def _balance(out: Path, counts: dict[str, Any]) -> Html:
    figures = [
        ("concepts (widest clusters)", counts["concept_entropy_before"], counts["concept_entropy_after"],
         counts["concept_entropy_most"])
    ]  # fmt: skip
    labels = _class_entropy(out)
    figures += [("labels", *labels)] if labels else []
    return section(
        "Balance",
        table(("entropy of, nats", "before", "after", "most possible"), figures, digits=3),
        text="The nearer to the most possible, the more even. Labels are only looked at here.",
    )


def _class_entropy(out: Path) -> tuple[float, float, float] | None:
    """Entropy of the labels among all images and in the manifest, where there are any."""
    counted = []
    for paths, column in ((parts_of(out / "index"), "label"), ([out / "manifest" / MANIFEST], "label")):
        if any(not path.is_file() or column not in pq.read_schema(path).names for path in paths):
            return None
        labels = [label for path in paths for label in pq.read_table(path, columns=[column])[column].to_pylist()]
        if not all(labels):
            return None
        counted.append(np.unique(labels, return_counts=True)[1])
    return entropy(counted[0]), entropy(counted[1]), float(np.log(len(counted[0])))


def _clusters(out: Path, pictures: _Pictures) -> Html:
    kept, paths = np.load(out / "balance" / "kept.npy"), np.load(out / "balance" / "paths.npy")
    top = paths[:, -1]
    groups, sizes = np.unique(top, return_counts=True)
    grids = []
    for group in groups[np.lexsort([groups, -sizes])][:_CLUSTERS]:
        rows = kept[top == group]
        few = rows[np.linspace(0, len(rows) - 1, min(_IN_CLUSTER, len(rows))).astype(int)]
        grids.append(pictures.grid(few, [""] * len(few), f"cluster {group}: {len(rows)} images"))
    return section("Clusters", *grids, text="The widest clusters of the balanced sample, largest first.")
