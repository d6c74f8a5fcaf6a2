# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.precision import full_float32


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_full_within_and_as_it_was_behind(precision):
    with full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == precision


def test_as_it_was_also_behind_an_error(precision):
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA has TensorFloat-32")
@pytest.mark.usefixtures("precision")
def test_products_are_exact_on_cuda():
    x = torch.randn(512, 384, device="cuda")
    with full_float32():
        error = (x @ x.T).double() - x.double() @ x.double().T
    assert error.abs().max() < 1e-3
