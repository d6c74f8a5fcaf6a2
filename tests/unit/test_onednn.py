# SPDX-License-Identifier: Apache-2.0
import time

import pytest
import torch

from opendino import onednn
from opendino.onednn import pays, product, seconds_of


@pytest.fixture(autouse=True)
def _no_trial_before():
    onednn._trial.cache_clear()
    yield
    onednn._trial.cache_clear()


def test_products_of_any_strides_are_the_formula(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(onednn, "available", lambda a=answer: a)
        for a in (torch.randn(5, 7), torch.randn(7, 5).t()):
            for b in (torch.randn(6, 7), torch.randn(7, 6).t(), torch.randn(6, 9)[:, 1:8]):
                wanted = torch.einsum("nk,mk->nm", a.double(), b.double())
                torch.testing.assert_close(product(a, b).double(), wanted, atol=1e-5, rtol=1e-5)
    assert product(torch.ones(2, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)).tolist() == [[3], [3]]


def test_the_plain_way_is_taken_where_the_other_is_missing_wrong_or_slower(monkeypatch):
    assert not pays(8, 8, torch.float64)
    for seconds, answer in (([1.0, 5.0], True), ([5.0, 1.0], False)):
        monkeypatch.setattr(onednn, "seconds_of", lambda _, s=seconds: s)
        onednn._trial.cache_clear()
        assert pays(8, 12, torch.float32) == answer
    monkeypatch.setattr(onednn, "seconds_of", lambda _: [1.0, 5.0])

    def missing(*_):
        raise AttributeError("no such function in this PyTorch")

    for broken in (missing, lambda x, weight, bias, activation: x[:, :1] + bias):
        onednn._trial.cache_clear()
        monkeypatch.setattr(onednn, "linear", broken)
        assert not pays(8, 12, torch.float32)


def test_products_are_available_where_they_are_there_and_right(monkeypatch):
    onednn.available.cache_clear()
    here = onednn.available()
    assert torch.backends.mkldnn.is_available() or not here

    def missing(*_):
        raise AttributeError("no such function in this PyTorch")

    for broken in (missing, lambda x, weight, bias: x @ weight.t() + 1):
        onednn.available.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(onednn, "linear", broken)
            assert not onednn.available()
    onednn.available.cache_clear()


def test_a_slow_way_is_seen_to_be_slow():
    quick, slow = seconds_of((lambda: None, lambda: sum(range(20_000))))
    assert quick < slow


def test_ways_are_timed_on_one_thread_that_others_do_not_slow_down():
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        found = seconds_of((lambda: seen.append(torch.get_num_threads()), lambda: time.sleep(0.05)), rounds=2)
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            seconds_of((lambda: 1 / 0,))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert seen == [1, 1]
    assert found[1] < 0.01, "waiting is no work"


def test_eight_bit_products_are_taken_only_where_they_are_there_and_exact(monkeypatch):
    onednn.int8_available.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    exact = onednn.linear_int8(
        torch.tensor([[3, 130]], dtype=torch.uint8),
        128,
        onednn.pack_int8(torch.tensor([[2, -5], [127, 1]], dtype=torch.int8)),
        torch.tensor([0.5, 2.0]),
    )
    assert exact.tolist() == [[0.5 * (-125 * 2 - 5 * 2), 2.0 * (-125 * 127 + 2)]]

    def missing(*_):
        raise AttributeError("no such function in this PyTorch")

    try:
        for broken in (missing, lambda x, zero, weight, scales: torch.zeros(len(x), len(scales))):
            onednn.int8_available.cache_clear()
            monkeypatch.setattr(onednn, "linear_int8", broken)
            assert not onednn.int8_available()
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        onednn.int8_available.cache_clear()
        assert not onednn.int8_available()
    finally:
        onednn.int8_available.cache_clear()
