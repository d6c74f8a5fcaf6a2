# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours and k-means on one thread, beside faiss in the same run: CPU seconds, recall, objective.

    python benchmarks/curate_search.py search rows=200000 queries=4096
    python benchmarks/curate_search.py kmeans rows=200000 k=1000
    python benchmarks/curate_search.py growth            # 50k, 100k, 200k, 400k rows

Queries are rows of the set, so a self-join costs rows / queries times as much. Data: unit rows around 2,000 centres
of Zipf sizes, a seventh of them near copies. Needs faiss (pip install 'opendino[faiss]'); without it only ours is run.
"""

import argparse
import resource
import time

import numpy as np
import torch

from opendino.curate import _kmeans
from opendino.curate._kmeans import KMeansConfig
from opendino.neighbours.exact import SearchConfig, fast_dtype, nearest, recall
from opendino.neighbours.matrix import InMemory

DIM, CENTRES, K = 384, 2000, 65
try:
    import faiss  # pyrefly: ignore[missing-import]  an extra
except ImportError:
    faiss = None


def features(rows, seed=0):
    """Unit rows: clusters of Zipf(0.8) sizes with a subspace of 24 numbers each, every seventh row a near copy."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, CENTRES + 1) ** 0.8
    cluster = rng.choice(CENTRES, rows, p=shares / shares.sum())
    centres = rng.normal(size=(CENTRES, DIM)).astype(np.float32)
    axes = rng.normal(size=(64, 24, DIM)).astype(np.float32) / 5
    found = np.empty((rows, DIM), dtype=np.float32)
    for start in range(0, rows, 10000):
        mine = cluster[start : start + 10000]
        inside = rng.normal(size=(len(mine), 1, 24)).astype(np.float32)
        found[start : start + 10000] = centres[mine] + (inside @ axes[mine % 64])[:, 0]
    copies = np.flatnonzero(rng.random(rows) < 0.15)
    found[copies] = found[rng.integers(0, rows, len(copies))] + 0.2 * rng.normal(size=(len(copies), DIM))
    return torch.nn.functional.normalize(torch.from_numpy(found), dim=1)


def timed(work):
    """CPU seconds of this process, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def ours(bank, queries, config):
    parts = [nearest(queries[at : at + 1024], bank, K, config) for at in range(0, len(queries), 1024)]
    return torch.cat([rows for _, rows in parts])


def search(rows, queries, margin=1.1):
    bank = features(rows)
    asked = bank[:: rows // queries][:queries].contiguous()
    print(f"{rows} x {DIM}, {queries} queries, {K} nearest (itself counted), one thread")
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
        seconds, found = timed(lambda config=config, data=data: ours(data, asked, config))
        ratio = f"{seconds / base:.2f}" if base else ""
        said = f"{recall(found, truth):.4f}" if truth is not None else ""
        print(f"| ours, {precision} | {seconds:.1f} | {ratio} | {said} | {peak()} |")


def kmeans(rows, k, steps=20):
    bank = features(rows)
    data = InMemory(bank)
    print(f"{rows} x {DIM}, {k} clusters, {steps} steps, one thread")
    print("| engine | CPU s | mean squared distance | empty |\n|---|---|---|---|")
    found = []
    if faiss:

        def peer():
            machine = faiss.Kmeans(DIM, k, niter=steps, seed=0, max_points_per_centroid=rows)
            machine.train(bank.numpy())
            return torch.from_numpy(machine.centroids)

        found.append(("faiss.Kmeans, all points", *timed(peer)))
    for precision in ("fp32", "bf16"):
        for init in ("random", "kmeans++"):
            config = KMeansConfig(steps, init, precision=precision, device="cpu")
            work = timed(lambda config=config: _kmeans.kmeans(data, k, config, seed=0, device=torch.device("cpu")))
            found.append((f"ours, {precision}, {init}", *work))
    for name, seconds, centroids in found:
        end = _kmeans.assign(data, centroids, device=torch.device("cpu"))
        empty = k - len(np.unique(end.cluster))
        print(f"| {name} | {seconds:.1f} | {end.distance.mean(dtype=np.float64):.4f} | {empty} |")


def growth(queries=2048):
    print("| rows | CPU s a query block | of a whole self-join, hours | peak MB |\n|---|---|---|---|")
    for rows in (50_000, 100_000, 200_000, 400_000):
        bank = features(rows)
        seconds, _ = timed(lambda bank=bank: ours(InMemory(bank), bank[:queries], SearchConfig(device="cpu")))
        print(f"| {rows} | {seconds:.2f} | {seconds * rows / queries / 3600:.3f} | {peak()} |", flush=True)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="search", choices=["search", "kmeans", "growth"])
    parser.add_argument("words", nargs="*", help="key=value for what is measured")
    given = parser.parse_args()
    name, words = given.name, given.words
    torch.set_num_threads(1)
    if faiss:
        faiss.omp_set_num_threads(1)
    arguments = {
        key: float(value) if "." in value else int(value) for key, value in (word.split("=") for word in words)
    }
    defaults = {"search": {"rows": 200_000, "queries": 4096}, "kmeans": {"rows": 200_000, "k": 1000}, "growth": {}}
    {"search": search, "kmeans": kmeans, "growth": growth}[name](**(defaults[name] | arguments))


if __name__ == "__main__":
    main()
