# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours and k-means beside faiss in the same run: CPU seconds, recall, objective.

    python benchmarks/curate_search.py join rows=200000          # a set with itself
    python benchmarks/curate_search.py search rows=200000 queries=4096
    python benchmarks/curate_search.py kmeans rows=200000 k=1000
    python benchmarks/curate_search.py join rows=200000 memory_mb=64      # the same in stripes (dim=64: narrower rows)
    python benchmarks/curate_search.py growth                    # joins of 50k, 100k, 200k and 400k rows
    python benchmarks/curate_search.py approximate rows=100000   # IVF and HNSW: recall and cost

One thread, or threads=2. faiss is asked for a sample of the rows before and after ours and the median is scaled to all
rows. Data: unit rows around 2,000 centres of Zipf sizes, a seventh of them near copies. Needs faiss (pip install
'opendino[faiss]'); without it only ours is run. The last line of a join is JSON.
"""

import argparse
import json
import resource
import time
from typing import Any, Literal

import numpy as np
import torch

from opendino.curate import _kmeans
from opendino.curate._kmeans import KMeansConfig
from opendino.neighbours.approximate import find
from opendino.neighbours.exact import SearchConfig, fast_dtype, recall, self_join
from opendino.neighbours.matrix import InMemory

DIM, CENTRES, K = 384, 2000, 65
try:
    import faiss  # pyrefly: ignore[missing-import]  an extra
except ImportError:
    faiss = None


def features(rows, seed=0, dim=DIM):
    """Unit rows: clusters of Zipf(0.8) sizes with a subspace of 24 numbers each, every seventh row a near copy."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, CENTRES + 1) ** 0.8
    cluster = rng.choice(CENTRES, rows, p=shares / shares.sum())
    centres = rng.normal(size=(CENTRES, dim)).astype(np.float32)
    axes = rng.normal(size=(64, 24, dim)).astype(np.float32) / 5
    found = np.empty((rows, dim), dtype=np.float32)
    for start in range(0, rows, 10000):
        mine = cluster[start : start + 10000]
        inside = rng.normal(size=(len(mine), 1, 24)).astype(np.float32)
        found[start : start + 10000] = centres[mine] + (inside @ axes[mine % 64])[:, 0]
    copies = np.flatnonzero(rng.random(rows) < 0.15)
    found[copies] = found[rng.integers(0, rows, len(copies))] + 0.2 * rng.normal(size=(len(copies), dim))
    return torch.nn.functional.normalize(torch.from_numpy(found), dim=1)


def timed(work):
    """CPU seconds of this process, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def search(rows, queries, margin=1.1):
    bank = features(rows)
    asked = bank[:: rows // queries][:queries].contiguous()
    print(f"{rows} x {DIM}, {queries} queries, {K} nearest (itself counted)")
    print("| engine | CPU s | of faiss | recall | peak MB |\n|---|---|---|---|---|")
    truth, base = None, None
    if faiss:

        def flat():
            index = faiss.IndexFlatIP(DIM)
            index.add(bank.numpy())
            return torch.from_numpy(index.search(asked.numpy(), K)[1])

        base, truth = timed(flat)
        print(f"| faiss IndexFlatIP | {base:.1f} | 1 | 1 | {peak()} |")
    for precision in ("fp32", "bf16"):
        config = SearchConfig(precision=precision, margin=margin, device="cpu")
        data = InMemory(bank)
        data.short(0, 1, fast_dtype(precision, torch.device("cpu")))  # once for a whole join, not for this sample of it
        seconds, found = timed(lambda config=config, data=data: blocks(asked, data, config)[1])
        ratio = f"{seconds / base:.2f}" if base else ""
        said = f"{recall(found, truth):.4f}" if truth is not None else ""
        print(f"| ours, {precision} | {seconds:.1f} | {ratio} | {said} | {peak()} |")


def kmeans(rows, k, steps=20):
    bank = features(rows)
    data = InMemory(bank)
    print(f"{rows} x {DIM}, {k} clusters, {steps} steps")
    print("| engine | CPU s | mean squared distance | empty |\n|---|---|---|---|")
    found = []
    if faiss:

        def peer():
            machine = faiss.Kmeans(DIM, k, niter=steps, seed=0, max_points_per_centroid=rows)
            machine.train(bank.numpy())
            return torch.from_numpy(machine.centroids)

        found.append(("faiss.Kmeans, all points", *timed(peer)))
    for precision, init in (("fp32", "random"), ("auto", "random"), ("auto", "kmeans++")):
        config = KMeansConfig(steps, init, precision=precision, device="cpu")
        work = timed(lambda config=config: _kmeans.kmeans(data, k, config, seed=0, device=torch.device("cpu")))
        found.append((f"ours, {precision}, {init}", *work))
    for name, seconds, centroids in found:
        end = _kmeans.assign(data, centroids, device=torch.device("cpu"))
        empty = k - len(np.unique(end.cluster))
        print(f"| {name} | {seconds:.1f} | {end.distance.mean(dtype=np.float64):.4f} | {empty} |")


def join(
    rows: int,
    queries: int = 2048,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    memory_mb: int = 512,
    dim: int = DIM,
) -> dict[str, Any]:
    bank = features(rows, dim=dim)
    asked = bank[: min(queries, rows)].contiguous()
    seconds, truth = [], torch.empty(0)

    def peer():
        return torch.from_numpy(index.search(asked.numpy(), K)[1])

    if faiss:
        index = faiss.IndexFlatIP(dim)
        index.add(bank.numpy())
        seconds.append(timed(peer)[0])
    before = peak()
    config = SearchConfig(precision=precision, memory_mb=memory_mb, device="cpu")
    mine, (_, found) = timed(lambda: self_join(InMemory(bank), K, config))
    said, whole = f"| {rows} | {mine:.1f} | {peak() - before} |", None
    if faiss:
        for _ in range(2):
            again, truth = timed(peer)
            seconds.append(again)
        whole = sorted(seconds)[1] * rows / len(asked)
        said += f" {whole:.1f} | {mine / whole:.2f} | {recall(found[: len(asked)], truth):.5f} |"
    print(said, flush=True)
    return {"rows": rows, "ours": mine, "faiss": whole}


def growth():
    return {"joins": [join(rows, memory_mb=1024) for rows in (50_000, 100_000, 200_000, 400_000)]}


def approximate(rows, queries=4096):
    bank = features(rows)
    asked, data = bank[:: rows // queries][:queries].contiguous(), InMemory(bank)
    seconds, (_, truth) = timed(lambda: blocks(asked, data, SearchConfig(device="cpu")))
    print(f"{rows} x {DIM}, {queries} queries, {K} nearest")
    print("| engine | build, CPU s | queries, CPU s | recall |\n|---|---|---|---|")
    print(f"| exact | | {seconds:.1f} | 1 |", flush=True)
    ivf = [(f"ivf {lists}", SearchConfig(device="cpu", engine="ivf", nprobe=lists)) for lists in (16, 64)]
    for name, config in (*ivf, ("hnsw 128", SearchConfig(device="cpu", engine="hnsw", ef=128))):
        building, _ = timed(lambda config=config: find(asked[:1], data, K, config))
        seconds, (_, found) = timed(lambda config=config: blocks(asked, data, config))
        print(f"| {name} | {building:.1f} | {seconds:.1f} | {recall(found, truth):.4f} |", flush=True)


def blocks(asked, data, config):
    parts = [find(asked[at : at + 1024], data, K, config) for at in range(0, len(asked), 1024)]
    return torch.cat([values for values, _ in parts]), torch.cat([rows for _, rows in parts])


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "name", nargs="?", default="join", choices=["join", "search", "kmeans", "growth", "approximate"]
    )
    parser.add_argument("words", nargs="*", help="key=value for what is measured")
    given = parser.parse_args()
    words = dict(word.split("=") for word in given.words)
    threads = int(words.pop("threads", 1))
    torch.set_num_threads(threads)
    if faiss:
        faiss.omp_set_num_threads(threads)
    numbers = {key: float(value) if "." in value else int(value) for key, value in words.items()}
    if given.name in ("join", "growth"):
        print(f"{numbers.get('dim', DIM)} numbers, {K} nearest (itself counted), {threads} thread(s), CPU seconds")
        print("| rows | ours | MB more | faiss IndexFlatIP | ours of it | recall |\n|---|---|---|---|---|---|")
    work, defaults = {
        "join": (join, {"rows": 200_000}),
        "search": (search, {"rows": 200_000, "queries": 4096}),
        "kmeans": (kmeans, {"rows": 200_000, "k": 1000}),
        "growth": (growth, {}),
        "approximate": (approximate, {"rows": 100_000}),
    }[given.name]
    call: Any = work
    found = call(**(defaults | numbers))
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
