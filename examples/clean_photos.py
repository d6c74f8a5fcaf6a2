# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates out of a folder of photographs: python examples/clean_photos.py runs/mine photos spare [threshold]

The best of each group stays, the others are moved (not removed) to `spare`; a page shows what was done and why.
"""

import shutil
import sys
from pathlib import Path

from opendino.embed import EmbedConfig, embed
from opendino.search import build, find_duplicates
from opendino.search.page import duplicates_page


def main(model: str, photos: str, spare: str, threshold: str = "0.95") -> list[Path]:
    work = Path(spare) / "work"
    done = embed(model, photos, work / "features", EmbedConfig(overwrite=True))
    index = build(done.folder, work / "index")
    groups = find_duplicates(index, float(threshold))
    page = duplicates_page(Path(spare) / "duplicates.html", index, groups, float(threshold))
    moved = []
    for group in groups:
        for hit in group.spare:
            target = Path(spare) / Path(hit.path).relative_to(photos)
            target.parent.mkdir(parents=True, exist_ok=True)
            moved.append(Path(shutil.move(hit.path, target)))
    print(f"{len(moved)} of {done.images} photographs moved to {spare}; look at {page}")
    return moved


if __name__ == "__main__":
    main(*sys.argv[1:5])
