"""Stacked heads against Linear, BatchNorm1d, normalize and SGD of torch, and against LARS as MAE's code states it."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive.evaluation.sgd import Schedule, SGDHeads, softmax_residuals

CLASSES = 3
WIDTH = 5
LEARNING_RATES = (0.05, 1.5)


class PlainLARS:
    """Parameters of one axis take SGD's steps, undecayed; mu = m mu + q g, p = p - lr mu."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        self.parameters, self.lr, self.momentum, self.weight_decay = parameters, lr, momentum, weight_decay
        self.mu = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        for p, mu in zip(self.parameters, self.mu, strict=True):
            update = p.grad
            assert update is not None
            if p.ndim > 1:
                update = update + self.weight_decay * p
                if p.norm() > 0 and update.norm() > 0:
                    update = update * 0.001 * p.norm() / update.norm()
            mu.copy_(self.momentum * mu + update)
            p -= self.lr * mu


def stream(steps: int = 10, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(steps):
        labels = torch.randint(CLASSES, (rows,), generator=generator)
        features = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) + 2 * F.one_hot(labels, WIDTH)
        batches.append((3 + features * torch.logspace(-1, 1, WIDTH, dtype=torch.float64), labels))
    return batches


def start() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(LEARNING_RATES), CLASSES, WIDTH + 1, generator=generator, dtype=torch.float64)


def reference(
    batches: list[tuple[Tensor, Tensor]],
    weights: Tensor,
    lr: float,
    shares: list[float],
    *,
    normalisation: str = "none",
    lars: bool = False,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[nn.Module, nn.Linear]:
    """One head by torch's modules and autograd."""
    linear = nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weights[:, :-1])
        linear.bias.copy_(weights[:, -1])
    norm: nn.Module = nn.Identity()
    if normalisation == "batch":
        norm = nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6, dtype=torch.float64)
    sgd = torch.optim.SGD(linear.parameters(), lr, momentum, nesterov=nesterov, weight_decay=weight_decay)
    plain_lars = PlainLARS([linear.weight, linear.bias], lr, momentum, weight_decay)
    for (features, labels), share in zip(batches, shares, strict=True):
        features = F.normalize(features, dim=1) if normalisation == "l2" else features
        linear.zero_grad()
        F.cross_entropy(linear(norm(features)), labels).backward()
        if lars:
            plain_lars.lr = lr * share
            plain_lars.step()
        else:
            sgd.param_groups[0]["lr"] = lr * share
            sgd.step()
    return norm.eval(), linear


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"nesterov": True, "weight_decay": 0.01},
        {"normalisation": "l2"},
        {"normalisation": "batch", "lars": True},
        {"normalisation": "batch", "lars": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_each_head_is_linear_trained_by_its_optimizer(options: dict[str, Any]) -> None:
    batches, shares = stream(), [0.1 * step for step in range(10)]
    heads = SGDHeads(start(), LEARNING_RATES, **options)
    for (features, labels), share in zip(batches, shares, strict=True):
        heads.update(features, labels, share)
    unseen = stream(steps=11)[-1][0]
    logits = heads.logits(unseen)
    for number, lr in enumerate(LEARNING_RATES):
        norm, linear = reference(batches, start()[number], lr, shares, **options)
        torch.testing.assert_close(heads.weights[number, :, :-1], linear.weight.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(heads.weights[number, :, -1], linear.bias.detach(), rtol=1e-9, atol=1e-9)
        inputs = F.normalize(unseen, dim=1) if options.get("normalisation") == "l2" else unseen
        torch.testing.assert_close(logits[:, number], linear(norm(inputs)).detach(), rtol=1e-9, atol=1e-9)


def test_lars_takes_plain_steps_from_weights_that_are_zero() -> None:
    batches, shares = stream(), [1.0] * 10
    heads = SGDHeads(torch.zeros_like(start()), LEARNING_RATES, lars=True)
    for features, labels in batches:
        heads.update(features, labels)
    _, linear = reference(batches, torch.zeros_like(start()[0]), LEARNING_RATES[0], shares, lars=True)
    torch.testing.assert_close(heads.weights[0, :, :-1], linear.weight.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalisation", ["none", "batch"])
def test_rows_without_a_label_take_no_part(normalisation: Any) -> None:
    clean, disturbed = (SGDHeads(start(), LEARNING_RATES, normalisation=normalisation) for _ in range(2))
    for features, labels in stream():
        clean.update(features, labels)
        disturbed.update(torch.cat([1e6 * features, features]), torch.cat([torch.full_like(labels, -1), labels]))
    assert disturbed.weights.equal(clean.weights)
    assert disturbed.logits(stream()[0][0]).equal(clean.logits(stream()[0][0]))


@pytest.mark.parametrize(("normalisation", "labelled"), [("none", 0), ("batch", 0), ("batch", 1)])
def test_a_batch_with_nothing_to_learn_from_changes_nothing(normalisation: Any, labelled: int) -> None:
    heads = SGDHeads(start(), LEARNING_RATES, normalisation=normalisation)
    for batch in stream():
        heads.update(*batch)
    before, logits = heads.weights.clone(), heads.logits(stream()[0][0])
    features, labels = stream()[0]
    labels[labelled:] = -1
    heads.update(features, labels)
    assert heads.weights.equal(before)
    assert heads.logits(stream()[0][0]).equal(logits)


def test_sixteen_bit_features_under_autocast_are_learned_from_in_the_weights_dtype() -> None:
    plain, half = (SGDHeads(start().float(), LEARNING_RATES) for _ in range(2))
    for features, labels in stream():
        rounded = features.bfloat16()
        plain.update(rounded.float(), labels)
        with torch.autocast("cpu", torch.bfloat16):
            half.update(rounded, labels)
            logits = half.logits(rounded)
    assert half.weights.dtype == logits.dtype == torch.float32
    assert half.weights.equal(plain.weights)


def test_the_weights_given_stay_as_they_are() -> None:
    weights = start()
    SGDHeads(weights, LEARNING_RATES).update(*stream()[0])
    assert weights.equal(start())


def test_residuals_are_the_gradient_of_the_cross_entropy_and_no_denormals() -> None:
    logits = torch.tensor([[[0.5, -1.0, 2.0]], [[300.0, 0.0, 210.0]]], requires_grad=True)
    labels = torch.tensor([2, 0])
    F.cross_entropy(logits[:, 0], labels, reduction="sum").backward()
    residuals = softmax_residuals(logits.detach(), labels)
    torch.testing.assert_close(residuals, logits.grad)
    assert not bool(((residuals != 0) & (residuals.abs() < torch.finfo(torch.float32).tiny)).any())


def test_a_head_needs_a_learning_rate_of_its_own() -> None:
    with pytest.raises(ValueError, match="There are 2 heads and 3 learning rates"):
        SGDHeads(start(), (0.1, 0.2, 0.3))


@pytest.mark.parametrize("by_epoch", [False, True])
def test_the_schedule_falls_rises_and_bends_as_stated(by_epoch: bool) -> None:
    epochs, length = 12, 5
    drops = Schedule(drops=(0.5, 0.75), by_epoch=by_epoch)
    bent = Schedule(cosine=True, warmup=0.25, by_epoch=by_epoch)
    for step in range(epochs * length):
        epoch = step // length if by_epoch else step / length
        assert Schedule()(step, steps_per_epoch=length, epochs=epochs) == 1
        expected = 1.0 if epoch < 6 else 0.1 if epoch < 9 else 0.01
        assert drops(step, steps_per_epoch=length, epochs=epochs) == pytest.approx(expected)
        expected = epoch / 3 if epoch < 3 else 0.5 * (1 + math.cos(math.pi * (epoch - 3) / 9))
        assert bent(step, steps_per_epoch=length, epochs=epochs) == pytest.approx(expected)
