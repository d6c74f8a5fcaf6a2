# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.curate.prune import PruneConfig, run, thin
from opendino.errors import ConfigError


def unit(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return torch.from_numpy(np.stack([np.cos(radians), np.sin(radians)], axis=1)).float()


EPS = 1 - float(np.cos(np.deg2rad(6)))  # nearer than six degrees is alike


@pytest.mark.parametrize("block", [1, 2, 100])
def test_by_hand(block):
    members, centroid = unit([0, 5, 10, 30]), unit([0])[0]
    random = np.array([0.2, 0.1, 0.3, 0.4])
    # From the farthest in: 30, 10, then 5 is like 10, and 0 is like 5, which came before it though it is gone.
    assert thin(members, centroid, PruneConfig(EPS, "hard"), random, block).tolist() == [False, False, True, True]
    assert thin(members, centroid, PruneConfig(EPS, "easy"), random, block).tolist() == [True, False, False, True]
    assert thin(members, centroid, PruneConfig(EPS, "random"), random, block).tolist() == [False, True, False, True]


def test_only_within_clusters(tmp_path, embedded, selected):
    features = embedded(unit([0, 1, 90, 91]).numpy())
    arrays = {"clusters-1": np.array([0, 1, 0, 0]), "centroids-1": unit([45, 0]).numpy()}
    clusters = selected([], name="clusters", **arrays)
    found = run(tmp_path, selected(range(4)), features, clusters, PruneConfig(EPS))
    assert np.load(found / "kept.npy").tolist() == [0, 1, 3]


def test_eps_out_of_range():
    with pytest.raises(ConfigError, match="0 \\(off\\) to 2"):
        PruneConfig(eps=-0.1)
