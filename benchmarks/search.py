# SPDX-License-Identifier: Apache-2.0
"""A million vectors searched: seconds a query by the exact engine, and by faiss where it is installed.

python benchmarks/search.py [--quick] [--rows 1000000] [--engines exact ivf] [--folder DIR] [--json FILE]

An index is written as `opendino search build` writes it (unit vectors of 384 numbers, float32, mapped), then queries
are asked one at a time, ten neighbours each, through `Index.hits`: the first with the files out of the page cache, the
others with them there, in seconds of the clock and of the processor. Vectors lie around centres, one for fifty of them;
queries are vectors of the set moved a little. Approximate engines are judged by how many of the exact ten they find.
`--quick` takes 50,000 vectors. A million need 1.6 GB of disk, twice that with faiss, whose index holds its own copy.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from opendino.errors import ConfigError
from opendino.neighbours import approximate
from opendino.neighbours.exact import SearchConfig
from opendino.search.index import Index, Vectors

DIM, K, BLOCK = 384, 10, 50_000


def write(folder: Path, rows: int, centres: int = 20_000) -> None:
    """The vectors and names of an index."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    middle = torch.nn.functional.normalize(torch.randn(centres, DIM, generator=random), dim=1)
    out = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (rows, DIM))
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        near = middle[torch.randint(centres, (stop - start,), generator=random)]
        noise = torch.randn(stop - start, DIM, generator=random) * (0.6 / DIM**0.5)
        out[start:stop] = torch.nn.functional.normalize(near + noise, dim=1).numpy()
    out.flush()
    numbers = np.arange(rows)
    pq.write_table(pa.table({"row": numbers, "path": [f"{n:07d}.jpg" for n in numbers]}), folder / "images.parquet")


def opened(folder: Path, search: SearchConfig) -> Index:
    """The index with an engine."""
    about = {"format": "opendino index 1", "feature": "cls", "model": "made", "search": asdict(search)}
    (folder / "index.json").write_text(json.dumps(about))
    return Index(folder)


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ask(index: Index, queries: torch.Tensor) -> tuple[list[tuple[float, float]], list[list[int]]]:
    """Seconds of the clock and of the processor, and what was found, of each query, one at a time."""
    times, found = [], []
    for query in queries:
        clock, processor = time.perf_counter(), time.process_time()
        hits = index.hits(query[None], K)[0]
        times.append((time.perf_counter() - clock, time.process_time() - processor))
        found.append([hit.position for hit in hits])
    return times, found


def measure(folder: Path, engine: Any, queries: torch.Tensor, truth: list[list[int]] | None) -> dict[str, Any]:
    """Figures of one engine, and what it found."""
    search = replace(SearchConfig(), engine=engine)
    started = time.perf_counter()
    if engine != "exact":
        approximate.write(folder / "graph.faiss", Vectors(folder / "vectors.npy"), search, K)
    building = time.perf_counter() - started
    for name in ("vectors.npy", "graph.faiss"):
        if (folder / name).exists():
            forget(folder / name)
    started = time.perf_counter()
    index = opened(folder, search)
    opening = time.perf_counter() - started
    first, _ = ask(index, queries[:1])
    times, found = ask(index, queries[1:])
    clock, processor = (float(one) for one in np.median(times, axis=0))
    right = [len(set(one) & set(other)) / K for one, other in zip(found, truth or found, strict=True)]
    return {
        "build": round(building, 1), "open": round(opening, 2), "first": round(first[0][0], 3),
        "median": round(clock, 4), "processor": round(processor, 4), "slowest": round(max(times)[0], 4),
        "recall": round(float(np.mean(right)), 4), "found": found,
    }  # fmt: skip


def main() -> None:
    """Print a row for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--engines", nargs="*", default=["exact", "ivf"], choices=["exact", "ivf", "hnsw"])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where the index is written; removed at the end")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    rows = 50_000 if words.quick else words.rows
    told: dict[str, Any] = {"rows": rows, "threads": torch.get_num_threads()}
    place = Path(tempfile.mkdtemp(dir=words.folder))
    try:
        write(place / "index", rows, max(rows // 50, 10))
        taken = np.load(place / "index" / "vectors.npy", mmap_mode="r")[:: rows // (words.queries + 1)]
        taken = torch.from_numpy(np.array(taken[: words.queries + 1]))
        queries = taken + torch.randn(taken.shape, generator=torch.Generator().manual_seed(1)) * (0.3 / DIM**0.5)
        print(f"| {rows:,} vectors | build, s | open, s | first, s | median, s | processor, s | slowest, s | found |")
        print(f"|---|{'---:|' * 7}")
        truth = None
        for engine in words.engines:
            try:
                one = measure(place / "index", engine, queries, truth)
            except ConfigError as error:
                print(f"| {engine} | left out: {error} |")
                continue
            found = one.pop("found")
            truth = found if engine == "exact" else truth
            told[engine] = one
            print(f"| {engine} | {' | '.join(str(value) for value in one.values())} |", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if words.json:
        words.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
