# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from opendino.curate import _kmeans
from opendino.curate._kmeans import KMeansConfig, assign, exact_scale, initial, kmeans, plus_plus, split
from opendino.errors import ConfigError
from opendino.neighbours.matrix import InMemory

CPU = torch.device("cpu")


def blobs(n=600, k=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(k, dim, generator=generator)
    return centres[torch.arange(n) % k] + torch.randn(n, dim, generator=generator)


def run(rows, k, seed=0, **settings):
    return kmeans(InMemory(rows), k, KMeansConfig(device="cpu", **settings), seed=seed, device=CPU)


def test_one_step_by_hand():
    rows = torch.tensor([[0.0, 0], [2, 0], [10, 0], [10, 4]])
    moved = _kmeans._lloyd(
        InMemory(rows), torch.tensor([[0.0, 0], [9, 0], [99, 99]]), 2.0**20, torch.float32, CPU, True
    )
    assert moved.tolist() == [[1, 0], [10, 2], [99, 99]]  # the third has lost all its rows and stays


def test_the_result_is_that_of_scikit_learn_from_the_same_start():
    rows = blobs()
    start = initial(InMemory(rows), 6, KMeansConfig(device="cpu"), 0, CPU)
    found = run(rows, 6)
    oracle = KMeans(6, init=start.numpy(), n_init=1, algorithm="lloyd", max_iter=50, tol=0).fit(rows.numpy())
    torch.testing.assert_close(found, torch.from_numpy(oracle.cluster_centers_).float(), atol=1e-4, rtol=0)
    labels, distance = assign(InMemory(rows), found, device=CPU)
    assert (labels == oracle.labels_).all()
    assert distance.sum() == pytest.approx(oracle.inertia_, rel=1e-5)


def test_every_step_lowers_the_objective():
    rows = blobs(seed=3)
    means = [assign(InMemory(rows), run(rows, 12, iterations=n), device=CPU).distance.mean() for n in (1, 2, 4, 9)]
    assert all(later <= sooner * 1.000001 for sooner, later in itertools.pairwise(means))


@st.composite
def heaps(draw):
    """Rows with copies among them, a number of clusters, a seed."""
    n, dim = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    rows = torch.randn(n, dim, generator=generator)[torch.randint(0, n, (n,), generator=generator)]
    return rows, draw(st.integers(1, n)), draw(st.integers(0, 9))


def close_pairs(seed):
    """A heap with two points nearer to each other than float32 products tell apart: steps go to and fro there."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(35, 1, generator=generator)[torch.randint(0, 35, (35,), generator=generator)], 18, 0


@settings(max_examples=60, deadline=None)
@given(heaps(), st.sampled_from(["kmeans++", "random"]))
@example(close_pairs(1), "random")
@example(close_pairs(313), "random")
def test_at_rest_each_row_is_nearest_to_its_mean(heap, init):
    rows, k, seed = heap
    centroids = run(rows, k, seed, iterations=100, init=init, precision="fp32")
    found = assign(InMemory(rows), centroids, device=CPU)
    apart = (rows[:, None] - centroids[None]).square().sum(dim=2)
    torch.testing.assert_close(torch.from_numpy(found.distance), apart.min(dim=1).values, atol=1e-4, rtol=0)
    # Squares of distances are known to a few roundings of |x|^2. Only between centroids that are as near as that to
    # each other for some row may the steps go to and fro, and only those may be off, by the root of it.
    doubt = 4 * torch.finfo(torch.float32).eps * float(rows.square().sum(dim=1).max())
    exact = (rows.double()[:, None] - centroids.double()[None]).square().sum(dim=2)
    near = exact - exact.min(dim=1, keepdim=True).values
    torn = ((near > 0) & (near < doubt)).any(dim=1)
    unsure = set((near[torn] < doubt).nonzero()[:, 1].tolist())
    for cluster in np.unique(found.cluster):
        mine = rows[torch.from_numpy(found.cluster == cluster)]
        off = max(doubt**0.5, 1e-4) if int(cluster) in unsure else 1e-4
        torch.testing.assert_close(centroids[cluster], mine.mean(dim=0), atol=off, rtol=0)
    assert torch.equal(centroids, run(rows, k, seed, iterations=100, init=init, precision="fp32"))


def test_half_precision_ends_where_single_precision_does():
    rows = torch.nn.functional.normalize(blobs(seed=1), dim=1)
    ends = [assign(InMemory(rows), run(rows, 6, precision=p), device=CPU).distance.mean() for p in ("fp32", "bf16")]
    assert ends[1] == pytest.approx(ends[0], rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=50), st.integers(0, 10**6))
def test_sums_do_not_depend_on_their_order(numbers, seed):
    scale = exact_scale(len(numbers), 3.0)
    values = (np.array(numbers) * scale).round() / scale
    shuffled = np.random.default_rng(seed).permutation(values)
    assert sum(values.tolist()) == sum(shuffled.tolist())
    assert np.abs(values - numbers).max() <= 1 / scale


def test_the_first_rows_are_different_and_far_apart():
    rows = torch.cat([torch.zeros(50, 2), torch.tensor([[9.0, 0], [0, 9]])])
    chosen = plus_plus(rows, 3, np.random.default_rng(0))
    assert set(chosen.tolist()) >= {50, 51}
    copies = plus_plus(torch.ones(8, 2), 5, np.random.default_rng(0))
    assert len(set(copies.tolist())) == 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dies_at", [3, 5, 7])
def test_a_cut_short_run_ends_in_the_same_place(tmp_path, monkeypatch, precision, dies_at):
    rows, note = blobs(seed=2), tmp_path / "note.npy"
    config = KMeansConfig(device="cpu", iterations=8, save_every=2, precision=precision)
    whole = kmeans(InMemory(rows), 9, config, seed=0, device=CPU)
    step, done = _kmeans._lloyd, []

    def dying(*arguments):
        done.append(1)
        if len(done) == dies_at:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(_kmeans, "_lloyd", dying)
    with pytest.raises(KeyboardInterrupt):
        kmeans(InMemory(rows), 9, config, seed=0, device=CPU, note=note)
    # Another seed: what it starts from is the note alone.
    assert torch.equal(kmeans(InMemory(rows), 9, config, seed=1, device=CPU, note=note), whole)


def test_clusters_are_split_on_their_own():
    rows = blobs(k=2, dim=2)
    cluster = np.where(np.arange(600) % 2, 2, 0)  # cluster 1 is empty
    cluster[1] = 3
    found = split(InMemory(rows), cluster, 4, 5, KMeansConfig(device="cpu"), seed=0, device=CPU)
    assert found.shape == (5 + 0 + 5 + 1, 2)
    assert torch.equal(found[-1], rows[1])
    middle = rows[::2].mean(0), rows[1::2].mean(0)
    away = torch.stack([(found - one).norm(dim=1) for one in middle])
    assert away[:, :5].argmin(0).tolist() == [0] * 5
    assert away[:, 5:10].argmin(0).tolist() == [1] * 5


def test_more_clusters_than_rows():
    with pytest.raises(ConfigError, match="give 1 to 3"):
        run(torch.ones(3, 2), 4)
    with pytest.raises(ConfigError, match="1 or more"):
        KMeansConfig(iterations=0)
