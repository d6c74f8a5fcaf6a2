# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.layers import drop_path
from opendino.layers.drop_path import Subset, draw, kept_rows, residual_on_subset, token_positions


@pytest.mark.parametrize(
    ("rows", "rate", "kept"), [(10, 0.3, 7), (128, 0.3, 89), (64, 0.4, 38), (1, 0.4, 1), (3, 0.9, 1), (4, 0.0, 4)]
)
def test_kept_rows(rows, rate, kept):
    assert kept_rows(rows, rate) == kept


def test_token_positions():
    # rows 2 and 0 of a group of 3 tokens each that begins at 10
    assert token_positions(torch.tensor([2, 0]), 3, 10).tolist() == [16, 17, 18, 10, 11, 12]


def ones(x, groups):
    return torch.ones_like(x)


def test_whole_images_are_kept_and_scaled_group_by_group():
    groups = ((10, 3), (4, 2))
    x = torch.zeros(38, 2)
    out = residual_on_subset(x, groups, 0.3, ones)
    first, second = out[:30].view(10, 3, 2), out[30:].view(4, 2, 2)
    for group, rows, kept in ((first, 10, 7), (second, 4, 2)):
        touched = group[:, 0, 0] != 0
        assert touched.sum() == kept
        assert torch.equal(group, torch.where(touched[:, None, None], rows / kept, 0.0).expand_as(group))


def test_the_sum_over_a_group_is_that_of_the_plain_residual():
    """A constant branch shows it in one draw: kept rows times B / kept is B."""
    out = residual_on_subset(torch.zeros(10 * 3 + 5 * 2, 1), ((10, 3), (5, 2)), 0.45, ones)
    torch.testing.assert_close(out[:30].sum(), torch.tensor(30.0))
    torch.testing.assert_close(out[30:].sum(), torch.tensor(10.0))


def test_every_image_is_drawn_equally_often():
    counts = torch.zeros(5)
    for _ in range(2000):
        counts += residual_on_subset(torch.zeros(5, 1), ((5, 1),), 0.4, ones)[:, 0]
    # each row: kept with 3/5, then worth 5/3; standard error 0.018
    torch.testing.assert_close(counts / 2000, torch.ones(5), atol=0.08, rtol=0)


def test_branch_sees_the_kept_images_only_and_gradients_follow():
    seen = []
    x = torch.arange(1.0, 9.0).reshape(8, 1).requires_grad_()

    def square(kept, groups):
        seen.append((kept.flatten().tolist(), groups))
        return kept**2

    out = residual_on_subset(x, ((4, 2),), 0.5, square)
    (values, groups) = seen[0]
    assert groups == ((2, 2),)
    out.sum().backward()
    wanted = [1 + (2 * 2 * v if v in values else 0) for v in range(1, 9)]  # d(x + 2 x^2) = 1 + 4 x
    assert x.grad.flatten().tolist() == wanted


@pytest.mark.parametrize("groups", [((4, 2),), ((4, 2), (5, 3))], ids=["one scale", "two scales"])
def test_of_the_residual_nothing_is_kept_but_where_it_goes(groups):
    """PyTorch's own `index_add` keeps the residual; values and gradients, also of gradients, are its own."""
    tokens, saved, drawn = sum(b * t for b, t in groups), [], []
    x = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    subset = draw(groups, 0.4, x.device)

    def pack(tensor):
        saved.append(tensor)
        return tensor

    def branch(kept, _):
        drawn.append(kept.detach().pow(3).requires_grad_())
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch, torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        patch.setattr(drop_path, "draw", lambda *_: subset)
        out = residual_on_subset(x, groups, 0.4, branch)
    index = subset.positions()
    assert all(one.shape[1:] in ((), (1,)) for one in saved), "indices and scales, one number a token"
    scales = torch.cat([x.new_full((r * t, 1), s) for (r, t), s in zip(subset.kept_groups, subset.scales, strict=True)])
    (residual,) = drawn
    torch.testing.assert_close(out, x.index_add(0, index, residual * scales))
    gradients = torch.autograd.grad(out.pow(3).sum(), (x, residual), create_graph=True)
    torch.testing.assert_close(gradients, (3 * out**2, 3 * out[index] ** 2 * scales))
    (second,) = torch.autograd.grad(gradients[1].sum(), residual)
    torch.testing.assert_close(second, 6 * out[index] * scales**2)


def test_tokens_are_found_among_those_of_the_chosen_images():
    """Two groups, of 3 images with 4 tokens and of 2 with 3; images 2 and 0, and image 1 are chosen."""
    subset = Subset((torch.tensor([2, 0]), torch.tensor([1])), ((3, 4), (2, 3)))
    assert subset.positions().tolist() == [8, 9, 10, 11, 0, 1, 2, 3, 15, 16, 17]
    # of the first: token 1 of image 0, which comes second; 3 of image 2; 2 of image 1, which was left out
    wanted = [torch.tensor([1, 11, 6]), torch.tensor([3, 5, 0])]
    places, worth = subset.places(wanted), subset.worth(wanted, torch.float64)
    assert places[[0, 1, 3, 4]].tolist() == [5, 3, 8, 10]
    assert worth[:, 0].tolist() == [1.5, 1.5, 0, 2, 2, 0]
    assert 0 <= int(places.min()) <= int(places.max()) < 11, "what is worth nothing can be looked up too"
