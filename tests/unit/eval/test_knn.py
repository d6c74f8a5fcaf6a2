# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from opendino.errors import ConfigError
from opendino.eval import knn
from opendino.eval.knn import VoteConfig
from opendino.neighbours.exact import nearest
from opendino.neighbours.matrix import InMemory


def points(n, dim, classes, seed, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    features = centres[labels] + noise * rng.normal(size=(n, dim))
    return F.normalize(torch.from_numpy(features).float(), dim=1), torch.from_numpy(labels)


def test_votes_worked_by_hand():
    # T = 0.1; similarities 1.0, 0.9, 0.9 give weights in the ratio e : 1 : 1; two votes of class 1 against one of 0.
    similarities = torch.tensor([[1.0, 0.9, 0.9]])
    labels = torch.tensor([[0, 1, 1]])
    votes = knn.tally(similarities, labels, [1, 2, 3], 2, 0.1)
    total = math.e + 2
    expected = torch.tensor([[[math.e, 0]], [[math.e, 1]], [[math.e, 2]]]) / total
    torch.testing.assert_close(votes, expected)
    # A warmer vote lets the two outweigh the one: 2 exp(-0.1 / 1) > 1.
    assert knn.tally(similarities, labels, [3], 2, 1.0).argmax() == 1
    assert votes[2].argmax() == 0


def test_small_example_from_features_to_accuracy():
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    queries = torch.tensor([[2.0, 0.1], [0.1, 5.0], [-3.0, 0.2]])  # lengths must not matter
    figures, notes = knn.evaluate(bank, labels, queries, torch.tensor([0, 1, 1]), VoteConfig(k=(1, 3)))
    # k 1: nearest are images 0, 2, 3 -> classes 0, 1, 2: two of three right.
    assert figures["top1_k1"] == pytest.approx(200 / 3)
    # k 3, last query (-1, .07): neighbours 3 (cos 1), 2 (.07), 1 (-.76): class 2 still wins at T 0.07.
    assert figures["top1_k3"] == pytest.approx(200 / 3)
    assert notes == []
    assert set(figures) == {"top1_k1", "top1_k3"}  # five best of three classes would say nothing


@pytest.mark.parametrize("k", [1, 10, 50])
def test_agrees_with_scikit_learn(k):
    bank, labels = points(600, 16, 12, 0, noise=1.5)
    queries, _ = points(200, 16, 12, 1, noise=1.5)
    oracle = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank.double().numpy(), labels.numpy())
    best = knn.predict(bank, labels, queries, [k], 12)
    np.testing.assert_array_equal(best[0, :, 0].numpy(), oracle.predict(queries.double().numpy()))
    votes = oracle.predict_proba(queries.double().numpy())
    top5 = np.argsort(-votes, axis=1, kind="stable")[:, :5]
    has_vote = np.take_along_axis(votes, top5, 1) > 0
    np.testing.assert_array_equal(best[0].numpy(), np.where(has_vote, top5, -1))


def test_prediction_does_not_depend_on_the_other_k():
    bank, labels = points(400, 8, 7, 0, noise=2.0)
    queries, _ = points(150, 8, 7, 1, noise=2.0)
    alone = knn.predict(bank, labels, queries, [10], 7)
    beside = knn.predict(bank, labels, queries, [10, 20, 100, 200], 7)
    torch.testing.assert_close(beside[0], alone[0], rtol=0, atol=0)


def test_order_of_the_bank_does_not_matter():
    bank, labels = points(300, 8, 5, 0, noise=2.0)
    queries, answers = points(100, 8, 5, 1, noise=2.0)
    order = torch.randperm(300)
    first, _ = knn.evaluate(bank, labels, queries, answers, VoteConfig(k=(5, 20)))
    second, _ = knn.evaluate(bank[order], labels[order], queries, answers, VoteConfig(k=(5, 20)))
    assert first == second


@pytest.mark.parametrize("rows", [130, 5000])
def test_the_neighbours_are_exact(rows):
    bank, _ = points(rows, 8, 5, 0)
    queries, _ = points(20, 8, 5, 1)
    values, positions = nearest(queries, InMemory(bank), 9, knn.exactly("cpu"))
    similarities = queries.double() @ bank.double().T
    expected = np.argsort(-similarities.numpy(), axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(positions.numpy(), expected)
    torch.testing.assert_close(values.double(), similarities.gather(1, torch.from_numpy(expected)), rtol=0, atol=1e-6)


def test_float32_also_for_half_precision_features():
    # Two bank rows that bfloat16 arithmetic cannot tell apart after the product.
    query = torch.ones(1, 512) / math.sqrt(512)
    bank = torch.stack([torch.ones(512), torch.ones(512)]) / math.sqrt(512)
    bank[1, 0] *= 1.01
    values, positions = nearest(query, InMemory(bank), 2, knn.exactly("cpu"))
    assert positions.tolist() == [[1, 0]]
    assert values[0, 0] > values[0, 1]
    for features in (bank, bank.half()):  # predictions of half-precision features are those of the same numbers in full
        best = knn.predict(features, torch.tensor([0, 1]), query.to(features.dtype), [1], 2)
        wanted = int((query.to(features.dtype).double() @ features.double().T).argmax())
        assert best[0, 0, 0] == wanted


@pytest.mark.parametrize("ranks", [2, 3, 5, 7])
def test_predictions_do_not_depend_on_the_number_of_processes(monkeypatch, ranks):
    """Each process, one after the other, answers its share; what they sum up to is the answer of one, to the last bit.

    Weights of a tiny temperature make a hair of a similarity decide.
    """
    bank, labels = points(700, 16, 12, 0, noise=3.0)
    queries, _ = points(1500, 16, 12, 1, noise=3.0)
    seen, tally, arguments = [], knn.tally, (bank, labels, queries, [1, 20], 12, 1e-4)
    monkeypatch.setattr(knn, "tally", lambda near, *rest: seen.append(near) or tally(near, *rest))
    alone = knn.predict(*arguments)
    whole = {near.numpy().tobytes() for near in seen}
    shares = []
    seen.clear()
    monkeypatch.setattr(knn, "world_size", lambda: ranks)
    monkeypatch.setattr(knn, "all_reduce_sum", lambda tensor: tensor)
    for number in range(ranks):
        monkeypatch.setattr(knn, "rank", lambda number=number: number)
        shares.append(knn.predict(*arguments))
    assert torch.equal(sum(shares), alone)
    assert {near.numpy().tobytes() for near in seen} == whole


def test_more_queries_than_a_block():
    bank, labels = points(50, 4, 3, 0)
    queries, answers = points(1100, 4, 3, 1)
    best = knn.predict(bank, labels, queries, [5], 3)
    rows = torch.tensor([0, 511, 512, 1099])
    torch.testing.assert_close(best[:, rows], knn.predict(bank, labels, queries[rows], [5], 3))
    assert knn.accuracies(best, answers, [5], 3)["top1_k5"] > 60


def test_top5_counts_only_classes_with_a_vote():
    bank = F.normalize(torch.randn(10, 6), dim=1)
    labels = torch.tensor([0] * 10)
    queries = F.normalize(torch.randn(4, 6), dim=1)
    figures, _ = knn.evaluate(bank, labels, queries, torch.tensor([0, 1, 2, 6]), VoteConfig(k=(10,)))
    assert figures["top5_k10"] == pytest.approx(25)


def test_features_that_are_not_finite_are_neighbours_of_nobody():
    bank, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    queries = torch.stack([torch.full((4,), torch.nan), bank[3]])
    best = knn.predict(bank, labels, queries, [1, 3], 2)
    assert best[:, 0].tolist() == [[-1] * 5] * 2
    assert best[:, 1, 0].tolist() == [1, 1]


def test_k_beyond_the_bank_is_left_out_and_said():
    bank, labels = points(30, 4, 3, 0)
    figures, notes = knn.evaluate(bank, labels, bank, labels, VoteConfig(k=(10, 20, 100, 200)))
    assert set(figures) == {"top1_k10", "top1_k20"}
    assert notes == ["left out k = 100, 200: the bank has only 30 images"]
    with pytest.raises(ConfigError, match="bank has 30 images; give a k of at most 30"):
        knn.evaluate(bank, labels, bank, labels, VoteConfig(k=(31,)))


def test_few_shot_banks():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    rows = knn.few_shot_rows(labels, 2, seed=0)
    assert labels[rows].bincount().tolist() == [2, 2, 2]
    torch.testing.assert_close(rows, knn.few_shot_rows(labels, 2, seed=0))
    draws = {tuple(knn.few_shot_rows(labels, 2, seed).tolist()) for seed in range(20)}
    assert len(draws) > 5
    with pytest.raises(ConfigError, match="class 2 has 2 training images"):
        knn.few_shot_rows(labels, 3, seed=0)


def test_few_shot_figures_are_means_over_tries():
    bank, labels = points(200, 6, 4, 0, noise=2.0)
    queries, answers = points(100, 6, 4, 1, noise=2.0)
    config = VoteConfig(k=(1, 20), n_per_class=(3,), tries=4)
    figures, _ = knn.evaluate(bank, labels, queries, answers, config)
    assert set(figures) == {"top1_k1", "top1_k20", "top1_k1_n3", "top1_k3_n3"}
    singles = []
    for seed in range(4):
        rows = knn.few_shot_rows(labels, 3, seed)
        singles.append(knn.evaluate(bank[rows], labels[rows], queries, answers, VoteConfig(k=(3,)))[0]["top1_k3"])
    assert len(set(singles)) > 1
    assert figures["top1_k3_n3"] == pytest.approx(np.mean(singles))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": ()}, "at least one"),
        ({"k": (0,)}, "1 or more"),
        ({"temperature": 0.0}, "positive"),
        ({"tries": 0}, "1 or more"),
        ({"n_per_class": (0,)}, "1 or more"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ConfigError, match=message):
        VoteConfig(**wrong)
