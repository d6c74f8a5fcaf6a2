# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from opendino.layers import onednn
from opendino.layers.onednn import PackedLinear, pays, seconds_of

FUNCTIONS = {"none": lambda x: x, "gelu": F.gelu, "silu": F.silu}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_and_plain_are_the_formula(activation, bias, dtype, close):
    weight, b, x = torch.randn(24, 16) / 4, torch.randn(24), torch.randn(2, 5, 16)
    weight, b, x = weight.to(dtype), b.to(dtype) if bias else None, x.to(dtype)
    product = x.double() @ weight.double().T + (0 if b is None else b.double())
    for packed in (True, False):
        layer = PackedLinear(weight, b, dtype, activation=activation, packed=packed)
        torch.testing.assert_close(layer(x).double(), FUNCTIONS[activation](product), atol=close, rtol=close)


def test_weights_are_a_copy():
    weight, x = torch.randn(4, 4), torch.randn(3, 4)
    for packed in (True, False):
        layer = PackedLinear(weight, None, torch.float32, packed=packed)
        wanted = layer(x).clone()
        weight += 1
        assert torch.equal(layer(x), wanted)


def test_the_plain_way_is_taken_where_the_other_is_missing_wrong_or_slower(monkeypatch):
    assert not pays(8, 8, torch.float64)
    monkeypatch.setattr(onednn, "seconds_of", lambda ways: [1.0, 5.0])
    onednn._trial.cache_clear()
    assert pays(8, 12, torch.float32)
    monkeypatch.setattr(onednn, "seconds_of", lambda ways: [5.0, 1.0])
    onednn._trial.cache_clear()
    assert not pays(8, 12, torch.float32)
    monkeypatch.setattr(onednn, "seconds_of", lambda ways: [1.0, 5.0])

    def broken(*_):
        raise RuntimeError("no oneDNN here")

    for answer in (broken, lambda self, x: self.bias + x.sum()):
        onednn._trial.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(PackedLinear, "forward", lambda self, x, a=answer: a(self, x) if self.packed else x)
            assert not pays(8, 8, torch.float32)
    onednn._trial.cache_clear()


def test_a_slow_way_is_seen_to_be_slow():
    quick, slow = seconds_of((lambda: None, lambda: sum(range(20_000))))
    assert quick < slow
