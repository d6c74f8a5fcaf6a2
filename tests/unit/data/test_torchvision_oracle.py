# SPDX-License-Identifier: Apache-2.0
"""The stored numbers of torchvision are those of a torchvision that imports here."""

import numpy as np
import pytest


def test_stored_results_are_torchvisions(oracle, golden):
    pytest.importorskip("torchvision")
    fresh = oracle.expected()
    assert set(fresh) <= set(golden)
    for name, array in fresh.items():
        if array.dtype == np.uint8:
            # A blurred value between two integers may fall to either with another build of torch.
            assert np.abs(array.astype(int) - golden[name]).max() <= (1 if name.startswith("blur") else 0), name
        else:
            np.testing.assert_allclose(array, golden[name], atol=2e-6, err_msg=name)


def test_stored_laws_are_torchvisions(oracle, golden):
    pytest.importorskip("torchvision")
    for name, (mean, deviation) in oracle.box_law(draws=4000).items():
        error = 5 * golden[name][1] / np.sqrt(4000)
        assert (np.abs(mean - golden[name][0]) <= error + 1e-9).all(), name
        assert deviation == pytest.approx(golden[name][1], rel=0.08, abs=1e-9), name
