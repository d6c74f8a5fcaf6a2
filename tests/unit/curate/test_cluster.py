# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from opendino.curate._kmeans import Assignment, KMeansConfig
from opendino.curate.balance import sample
from opendino.curate.cluster import ClusterConfig, default_levels, resampled, resolved, run
from opendino.errors import ConfigError
from opendino.stages.folder import counts_of


def rings(n=400, seed=0):
    """Points on the sphere, nine in ten of them crowded around one pole."""
    rng = np.random.default_rng(seed)
    crowd, rest = rng.normal([0, 0, 4], 0.4, (n * 9 // 10, 3)), rng.normal(0, 1, (n - n * 9 // 10, 3))
    return np.concatenate([crowd, rest]).astype(np.float32)


CPU = KMeansConfig(device="cpu", iterations=15)


def test_the_closest_rows_of_each_cluster():
    found = Assignment(np.array([0, 1, 0, 0, 1]), np.array([0.3, 0.1, 0.2, 0.2, 0.0], dtype=np.float32))
    assert resampled(found, 2, 2, "closest", 0).tolist() == [1, 2, 3, 4]
    assert resampled(found, 2, 1, "closest", 0).tolist() == [2, 4]
    drawn = resampled(found, 2, 1, "random", 0)
    assert found.cluster[drawn].tolist() in ([0, 1], [1, 0])


def test_the_tree_is_whole_and_the_same_each_time(tmp_path, embedded, selected):
    features, chosen = embedded(rings(), part=150), selected(range(0, 400, 2))
    config = ClusterConfig((20, 4), steps=2, kmeans=CPU)
    a, b = run(tmp_path / "a", chosen, features, config), run(tmp_path / "b", chosen, features, config)
    for path in sorted(a.glob("*.npy")):
        assert path.read_bytes() == (b / path.name).read_bytes()
    assert len(list(a.glob("*.npy"))) == 6
    first, second = np.load(a / "clusters-1.npy"), np.load(a / "clusters-2.npy")
    assert first.shape == (200,)
    assert second.shape == (20,)
    assert second.max() < 4
    centroids, rows = np.load(a / "centroids-1.npy"), rings()[::2]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert (first == ((rows[:, None] - centroids[None]) ** 2).sum(2).argmin(1)).all()
    assert [level["clusters"] for level in counts_of(a)["levels"]] == [20, 4]


def test_resampling_spreads_the_clusters(tmp_path, embedded, selected):
    """The claim of the paper: centroids cover the features more evenly than plain k-means' do."""
    features, chosen = embedded(rings(2000), part=500), selected(range(2000))
    crowded = []
    for steps in (0, 6):
        config = ClusterConfig((40,), (3,), steps=steps, kmeans=CPU)
        found = np.load(run(tmp_path / str(steps), chosen, features, config) / "centroids-1.npy")
        crowded.append((found[:, 2] / np.linalg.norm(found, axis=1) > 0.9).sum())
    assert crowded[1] < 0.8 * crowded[0]


def test_a_balanced_sample_of_the_tree_is_more_even_than_the_heap(tmp_path, embedded, selected):
    features, chosen = embedded(rings(1000), part=500), selected(range(1000))
    folder = run(tmp_path, chosen, features, ClusterConfig((50, 8), steps=3, kmeans=CPU))
    times = sample([np.load(folder / f"clusters-{level}.npy") for level in (1, 2)], 100, 0)
    assert times[:900].sum() < 70  # nine in ten of the heap


def test_clusters_are_split(tmp_path, embedded, selected):
    config = ClusterConfig((12,), (1,), split=4, kmeans=CPU)
    folder = run(tmp_path, selected(range(400)), embedded(rings(), part=400), config)
    assert len(np.load(folder / "centroids-1.npy")) == 12


def test_what_is_left_open_is_filled_in():
    assert default_levels(1000) == (50, 10)
    assert resolved(ClusterConfig(), 1000).resample == (10, 2)
    with pytest.raises(ConfigError, match="60 clusters of 50 images"):
        resolved(ClusterConfig((60,)), 50)
    with pytest.raises(ConfigError, match="numbers of clusters that fall"):
        ClusterConfig((5, 5))
    with pytest.raises(ConfigError, match="one number for each"):
        ClusterConfig((5, 2), (3,))
    with pytest.raises(ConfigError, match="a divisor"):
        ClusterConfig((5,), split=2)
