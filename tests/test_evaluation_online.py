"""The online heads, against BatchNorm1d, Linear and SGD of torch, one head after the other."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive.evaluation import LinearHeads
from tests.ranks import Ranks

LEARNING_RATES = (0.01, 0.3)
CLASSES = 3
WIDTH = 5


def stream(steps: int = 12, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Batches of features whose scale differs by dimension, and labels they tell something of."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(steps):
        labels = torch.randint(CLASSES, (rows,), generator=generator)
        features = torch.randn(rows, WIDTH, generator=generator) + 2 * F.one_hot(labels, WIDTH)
        batches.append((10 + features * torch.logspace(-1, 2, WIDTH), labels))
    return batches


def reference(
    batches: list[tuple[Tensor, Tensor]], learning_rate: float, momentum: float, weight_decay: float
) -> tuple[nn.BatchNorm1d, nn.Linear, list[float]]:
    """One head by torch's modules and autograd; and each batch's accuracy before it was learned from."""
    norm, linear = nn.BatchNorm1d(WIDTH, affine=False), nn.Linear(WIDTH, CLASSES)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    groups = [{"params": [linear.weight], "weight_decay": weight_decay}, {"params": [linear.bias]}]
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
    accuracies = []
    for features, labels in batches:
        logits = linear(norm(features))
        accuracies.append(float((logits.argmax(1) == labels).float().mean()))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    return norm.eval(), linear.eval(), accuracies


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.0, 0.1), (0.9, 0.01)])
def test_each_head_is_batch_norm_and_linear_trained_by_sgd(momentum: float, weight_decay: float) -> None:
    heads = LinearHeads(CLASSES, LEARNING_RATES, momentum=momentum, weight_decay=weight_decay)
    for batch in stream():
        heads.update(*batch)
    unseen = stream(steps=13)[-1][0]
    scores = []
    for number, learning_rate in enumerate(LEARNING_RATES):
        norm, linear, accuracies = reference(stream(), learning_rate, momentum, weight_decay)
        torch.testing.assert_close(heads.weights[number, :, :-1], linear.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.weights[number, :, -1], linear.bias.detach(), rtol=1e-4, atol=1e-5)
        if number == int(heads.chosen):
            torch.testing.assert_close(heads.logits(unseen), linear(norm(unseen)).detach(), rtol=1e-4, atol=1e-4)
        score = 0.0
        for accuracy in accuracies:
            score = 0.99 * score + 0.01 * accuracy
        scores.append(score)
    assert float(heads.chosen_learning_rate) == pytest.approx(LEARNING_RATES[max(range(2), key=lambda n: scores[n])])


def test_update_counts_what_the_reporting_head_had_right_before_it_learned() -> None:
    heads = LinearHeads(CLASSES, [0.1])
    _, _, accuracies = reference(stream(), 0.1, 0.9, 0.0)
    for (features, labels), accuracy in zip(stream(), accuracies, strict=True):
        right, rows = heads.update(features, labels)
        assert int(rows) == len(labels)
        assert int(right) == round(accuracy * len(labels))


def test_unlabelled_and_overflown_rows_take_no_part() -> None:
    clean, disturbed = LinearHeads(CLASSES, LEARNING_RATES), LinearHeads(CLASSES, LEARNING_RATES)
    for features, labels in stream():
        clean.update(features, labels)
        odd = torch.stack([1e6 * torch.ones(WIDTH), torch.full((WIDTH,), torch.inf), torch.full((WIDTH,), torch.nan)])
        right, rows = disturbed.update(torch.cat([odd, features]), torch.cat([torch.tensor([-1, 0, 1]), labels]))
        assert int(rows) == len(labels)
        assert int(right) <= len(labels)
    torch.testing.assert_close(disturbed.weights, clean.weights, rtol=1e-5, atol=1e-6)


def test_a_batch_without_labels_changes_nothing() -> None:
    heads = LinearHeads(CLASSES, LEARNING_RATES)
    for batch in stream():
        heads.update(*batch)
    before = heads.state_dict()
    assert heads.update(torch.randn(4, WIDTH), torch.full((4,), -1)) == (0, 0)
    after = heads.state_dict()
    assert all(after[key].equal(before[key]) for key in before)


def test_half_precision_features_under_autocast_are_learned_from_in_float32() -> None:
    plain, half = LinearHeads(CLASSES, LEARNING_RATES), LinearHeads(CLASSES, LEARNING_RATES)
    for features, labels in stream():
        rounded = features.bfloat16()
        plain.update(rounded.float(), labels)
        with torch.autocast("cpu", torch.bfloat16):
            half.update(rounded, labels)
            logits = half.logits(rounded)
    assert half.weights.dtype == logits.dtype == torch.float32
    assert half.weights.equal(plain.weights)


def test_a_copy_of_the_state_goes_on_exactly() -> None:
    batches = stream()
    straight, first, second = (LinearHeads(CLASSES, LEARNING_RATES) for _ in range(3))
    for batch in batches[:6]:
        straight.update(*batch)
        first.update(*batch)
    assert not second.is_trained
    second.load_state_dict(first.state_dict())
    assert second.is_trained
    for batch in batches[6:]:
        straight.update(*batch)
        second.update(*batch)
    assert second.weights.equal(straight.weights)
    assert second.logits(batches[0][0]).equal(straight.logits(batches[0][0]))


def learn_shard(batches: list[tuple[Tensor, Tensor]], cuts: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    rank = dist.get_rank()
    heads = LinearHeads(CLASSES, LEARNING_RATES)
    counts: list[int] = []
    for features, labels in batches:
        rows = slice(([0, *cuts])[rank], [*cuts, len(labels)][rank])
        counts += [int(count) for count in heads.update(features[rows], labels[rows])]
    return heads.weights, heads.logits(batches[0][0]), counts


def test_ranks_with_shares_of_different_size_learn_what_one_process_learns(three_ranks: Ranks) -> None:
    single = LinearHeads(CLASSES, LEARNING_RATES)
    expected = [int(count) for batch in stream() for count in single.update(*batch)]
    results = three_ranks(learn_shard, stream(), [1, 5])
    for weights, logits, counts in results:
        assert weights.equal(results[0][0])
        torch.testing.assert_close(weights, single.weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, single.logits(stream()[0][0]), rtol=1e-4, atol=1e-4)
        assert counts == expected


def test_learning_keeps_no_graph_of_the_encoder() -> None:
    heads = LinearHeads(CLASSES, LEARNING_RATES)
    features = torch.randn(8, WIDTH, requires_grad=True)
    heads.update(2 * features, torch.arange(8) % CLASSES)
    assert not heads.weights.requires_grad
    assert features.grad is None


def test_features_of_another_width_are_refused() -> None:
    heads = LinearHeads(CLASSES, LEARNING_RATES)
    heads.update(*stream()[0])
    with pytest.raises(ValueError, match="Features are 7 wide, but the probe was trained on 5"):
        heads.logits(torch.randn(2, 7))


def test_a_state_of_another_shape_is_refused() -> None:
    heads = LinearHeads(CLASSES, LEARNING_RATES)
    heads.update(*stream()[0])
    with pytest.raises(
        ValueError, match="2 heads for 3 classes, but this probe has 1 learning rates and num_classes=3"
    ):
        LinearHeads(CLASSES, [0.1]).load_state_dict(heads.state_dict())


@pytest.mark.parametrize("rates", [[], [0.1, 0.0]])
def test_learning_rates_must_be_positive(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="give one or more, each greater than 0"):
        LinearHeads(CLASSES, rates)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes = 1: a classifier tells at least 2"):
        LinearHeads(1, [0.1])
