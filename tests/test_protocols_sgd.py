"""The SGD protocols, against torch's modules and optimizers run by the official codes' formulas, one head at a time."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive.evaluation.features import Features
from contrastive.evaluation.protocols import AugmentedBatch, Evaluation
from contrastive.evaluation.protocols.protocol import Split
from contrastive.evaluation.protocols.sgd import (
    BYOL,
    DINOV2,
    MAE,
    MOCO_V2,
    MOCO_V3,
    MOCO_V3_VIT,
    SIMCLR_SGD,
    SGDProtocol,
)
from contrastive.evaluation.sgd import Schedule
from tests.ranks import Ranks
from tests.test_evaluation_sgd import PlainLARS

PROTOCOLS = {
    "simclr-sgd": SIMCLR_SGD,
    "moco-v2": MOCO_V2,
    "moco-v3": MOCO_V3,
    "moco-v3-vit": MOCO_V3_VIT,
    "byol": BYOL,
    "dinov2": DINOV2,
    "mae": MAE,
}
EVERY = pytest.mark.parametrize("name", PROTOCOLS)


class PlainTask:
    """Clusters; an augmented image is its features and some noise. The images' numbers are not their places."""

    def __init__(
        self, *, num_train: int = 60, num_test: int = 45, num_classes: int = 3, width: int = 6, noise: float = 0.6
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.num_classes = num_classes
        self.noise = noise
        self.centres = torch.randn(num_classes, width, generator=generator)
        self.splits: dict[Split, Features] = {
            "train": self.draw(num_train, generator),
            "val": self.draw(num_test, generator),
        }
        self.asked: list[str] = []

    def draw(self, number: int, generator: torch.Generator) -> Features:
        labels = torch.arange(number) % self.num_classes
        noise = torch.randn(number, self.centres.shape[1], generator=generator)
        return Features(self.centres[labels] + self.noise * noise, labels, 5 + 3 * torch.arange(number))

    @property
    def inputs(self) -> Mapping[str, slice]:
        return {"narrow": slice(3, 5), "middle": slice(2, 6), "left": slice(0, 5), "all": slice(0, 6)}

    def features(self, split: Split, *, blocks: bool = False) -> Features:
        self.asked.append(split)
        return self.splits[split]

    def augmented(
        self, epoch: int, *, batch_size: int, crop_min: float, seed: int, blocks: bool = False
    ) -> Iterator[AugmentedBatch]:
        self.asked.append(f"epoch {epoch}")
        train = self.splits["train"]
        assert batch_size <= len(train)
        assert crop_min == 0.08
        assert train.labels is not None
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        features = train.features + 0.1 * torch.randn(train.features.shape, generator=generator)
        order = torch.randperm(len(train), generator=generator)
        for rows in order.split(batch_size)[: self.num_batches(batch_size)]:
            yield AugmentedBatch(features[rows], train.labels[rows], train.index[rows])

    def num_batches(self, batch_size: int) -> int:
        return len(self.splits["train"]) // batch_size

    def change(self, split: Split, change: Callable[[Features], Features]) -> "PlainTask":
        self.splits[split] = change(self.splits[split])
        return self


@pytest.fixture
def double() -> Iterator[None]:
    """Everything in float64: what follows the same path agrees to the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The learning rate of a step as a share of the largest, as each official code computes it.


def cosine_by_step(step: int, length: int, epochs: int) -> float:
    """SimCLR's and BYOL's ``cosine_decay``, DINOv2's ``CosineAnnealingLR``."""
    return 0.5 * (1 + math.cos(math.pi * step / (epochs * length)))


def moco_v2(step: int, length: int, epochs: int) -> float:
    share = 1.0
    for milestone in (60, 80):
        share *= 0.1 if step // length >= milestone * epochs / 100 else 1.0
    return share


def moco_v3(step: int, length: int, epochs: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * (step // length) / epochs))


def mae(step: int, length: int, epochs: int) -> float:
    epoch, warmup_epochs = step / length, 10 * epochs / 90
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    return 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


OFFICIAL = {
    "simclr-sgd": cosine_by_step,
    "moco-v2": moco_v2,
    "moco-v3": moco_v3,
    "moco-v3-vit": moco_v3,
    "byol": cosine_by_step,
    "dinov2": cosine_by_step,
    "mae": mae,
}


@EVERY
def test_the_rate_of_every_step_is_the_official_codes(name: str) -> None:
    protocol, length = PROTOCOLS[name], 7
    for step in range(protocol.epochs * length):
        share = protocol.schedule(step, steps_per_epoch=length, epochs=protocol.epochs)
        assert share == pytest.approx(OFFICIAL[name](step, length, protocol.epochs), abs=1e-12)


def test_dinov2s_rate_is_that_of_torchs_scheduler() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0)
    for step in range(50):
        share = DINOV2.schedule(step, steps_per_epoch=5, epochs=10)
        assert share == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("name", "epochs", "batch_size", "rates"),
    [
        ("simclr-sgd", 90, 4096, [1.6]),  # 0.1 * 4096 / 256, the paper's 1.6
        ("moco-v2", 100, 256, [30.0]),
        ("moco-v3", 90, 1024, [0.4]),
        ("moco-v3-vit", 90, 1024, [12.0]),
        ("byol", 80, 1024, [0.2, 0.4, 0.8, 1.2, 1.6]),
        ("dinov2", 10, 1024, [4e-5, 8e-5, 2e-4, 4e-4, 8e-4, 2e-3, 4e-3, 8e-3, 0.02, 0.04, 0.08, 0.2, 0.4]),
        ("mae", 90, 16384, [6.4]),  # main_linprobe.py prints it as the actual lr
    ],
)
def test_epochs_batches_and_rates_are_the_published_ones(
    name: str, epochs: int, batch_size: int, rates: list[float]
) -> None:
    assert PROTOCOLS[name].epochs == epochs
    trained = replace(PROTOCOLS[name], epochs=1).train(PlainTask(num_train=16384))
    assert trained.batch_size == batch_size
    assert trained.learning_rates == pytest.approx(rates)
    assert trained.num_images == 16384


def reference(
    protocol: SGDProtocol, name: str, task: PlainTask, start: Tensor, rate: float, columns: slice, held_out: Tensor
) -> nn.Linear:
    """One head by torch's modules and autograd, on the images that are not held out."""
    linear = nn.Linear(start.shape[1] - 1, task.num_classes)
    with torch.no_grad():
        linear.weight.copy_(start[:, :-1])
        linear.bias.copy_(start[:, -1])
    norm = nn.BatchNorm1d(start.shape[1] - 1, affine=False, eps=1e-6) if name == "mae" else nn.Identity()
    lars = PlainLARS([linear.weight, linear.bias], 0.0, momentum=0.9, weight_decay=0.0)
    sgd = torch.optim.SGD(
        linear.parameters(),
        0.0,
        momentum=0.9,
        nesterov=name in ("simclr-sgd", "byol"),
        weight_decay=1e-6 if name == "simclr-sgd" else 0.0,
    )
    length, step = task.num_batches(8), 0
    for epoch in range(protocol.epochs):
        for batch in task.augmented(epoch, batch_size=8, crop_min=0.08, seed=3):
            kept = torch.tensor([number not in held_out.tolist() for number in batch.index.tolist()])
            linear.zero_grad()
            F.cross_entropy(linear(norm(batch.features[kept][:, columns])), batch.labels[kept]).backward()
            lars.lr = sgd.param_groups[0]["lr"] = rate * OFFICIAL[name](step, length, protocol.epochs)
            (lars if name == "mae" else sgd).step()
            step += 1
    return linear


@EVERY
def test_every_head_and_every_twin_is_what_torch_trains(name: str, double: None) -> None:
    """Batches of 8 of 60 images, for a tenth of the epochs, and rates that are per image."""
    published = PROTOCOLS[name]
    scaled = published.base_batch_size is not None
    protocol = replace(
        published, epochs=max(3, published.epochs // 10), batch_size=8, base_batch_size=1 if scaled else None
    )
    task = PlainTask()
    held_out = task.splits["train"].index[::7]
    still = replace(protocol, learning_rates=(1e-300,) * len(protocol.learning_rates))  # never leaves the start
    start = {key: heads.weights for key, heads in still.train(task, seed=3).heads.items()}
    trained = protocol.train(task, held_out=held_out, seed=3)
    inputs = dict(task.inputs) if name == "dinov2" else {"output": slice(None)}
    assert list(trained.heads) == list(trained.twins) == list(start) == list(inputs)
    nobody = torch.empty(0, dtype=torch.int64)
    for key, columns in inputs.items():
        for number, rate in enumerate(protocol.learning_rates):
            for heads, without in ((trained.heads[key], nobody), (trained.twins[key], held_out)):
                rate_used = rate * 8 if scaled else rate
                linear = reference(protocol, name, task, start[key][number], rate_used, columns, without)
                weights = heads.weights[number]
                torch.testing.assert_close(weights[:, :-1], linear.weight.detach(), rtol=1e-9, atol=1e-12)
                torch.testing.assert_close(weights[:, -1], linear.bias.detach(), rtol=1e-9, atol=1e-12)


@EVERY
def test_heads_start_as_the_official_codes(name: str) -> None:
    width = 400
    protocol = replace(PROTOCOLS[name], epochs=1, schedule=Schedule(), learning_rates=(1e-30, 1e-30))
    task = PlainTask(width=width, num_classes=50)
    trained = protocol.train(task, held_out=task.splits["train"].index[:5])
    for key, heads in trained.heads.items():
        weights, intercepts = heads.weights[..., :-1], heads.weights[..., -1]
        torch.testing.assert_close(trained.twins[key].weights, heads.weights, rtol=0, atol=1e-20)
        assert float(intercepts.abs().max()) < 1e-20
        if name == "simclr-sgd":
            assert float(weights.abs().max()) < 1e-20
            continue
        assert not weights[0].equal(weights[1])
        if name == "byol":  # Haiku's TruncatedNormal(1 / sqrt(D)) between two of these
            assert 1.9 / math.sqrt(width) < float(weights.abs().max()) <= 2 / math.sqrt(width)
            assert float(weights.std()) == pytest.approx(0.8796 / math.sqrt(width), rel=0.02)
        else:
            assert float(weights.std()) == pytest.approx(0.01, rel=0.2 if weights.numel() < 1000 else 0.05)
            assert abs(float(weights.mean())) < 0.002


SWEEP = replace(BYOL, epochs=3, batch_size=20)


def held_out_numbers(task: PlainTask) -> Tensor:
    return task.splits["train"].index[::6]


@pytest.mark.parametrize("protocol", [SWEEP, replace(SWEEP, normalisation="batch", lars=True)], ids=["sgd", "mae's"])
def test_twins_see_neither_labels_nor_features_of_held_out_images(protocol: SGDProtocol) -> None:
    held_out = held_out_numbers(PlainTask())

    def disturb(train: Features) -> Features:
        which = torch.isin(train.index, held_out)
        labels = torch.where(which, (train.labels + 1) % 3, train.labels)
        return Features(torch.where(which[:, None], 100 * train.features, train.features), labels, train.index)

    before = protocol.train(PlainTask(), held_out=held_out)
    after = protocol.train(PlainTask().change("train", disturb), held_out=held_out)
    assert after.twins["output"].weights.equal(before.twins["output"].weights)
    assert after.twins["output"].logits(torch.ones(1, 6)).equal(before.twins["output"].logits(torch.ones(1, 6)))
    assert not after.heads["output"].weights.equal(before.heads["output"].weights)


def test_the_setting_is_the_twins_best_and_the_score_that_of_the_head_on_all_images() -> None:
    protocol = replace(DINOV2, epochs=3, batch_size=20)
    task = PlainTask()
    evaluation = protocol.evaluate(task, seed=2)
    table = evaluation.details["held_out_top1"]
    assert len(table) == 52

    best = next(setting for setting, score in table.items() if score == max(table.values()))
    name, rate = best.rsplit(", ", 1)
    assert evaluation.chosen == {"learning_rate": float(rate), "input": name}
    heads = protocol.train(task, seed=2).heads[name]
    val = task.splits["val"]
    logits = heads.logits(val.features[:, task.inputs[name]])[:, protocol.learning_rates.index(float(rate))]
    assert evaluation.scores["top1"] == float((logits.argmax(1) == val.labels).double().mean())
    assert evaluation.num_test == 45
    assert evaluation.num_train == 60


def test_the_held_out_accuracies_are_those_of_torchs_heads() -> None:
    """Two rates and an input each: the same split, drawn by nobody else's code than ``stratified_split``."""
    from contrastive.evaluation.linear import stratified_split

    task = PlainTask(num_train=600, noise=2.0)
    train = task.splits["train"]
    assert train.labels is not None
    which = stratified_split(train.labels, 0.1, seed=5)
    protocol = replace(SIMCLR_SGD, epochs=3, batch_size=8, base_batch_size=1, learning_rates=(1e-4, 0.01))
    table = protocol.evaluate(task, seed=5).details["held_out_top1"]
    assert list(table) == ["0.0001", "0.01"]
    for rate in protocol.learning_rates:
        linear = nn.Linear(6, 3)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        sgd = torch.optim.SGD(linear.parameters(), 0.0, momentum=0.9, nesterov=True, weight_decay=1e-6)
        step = 0
        for epoch in range(3):
            for batch in task.augmented(epoch, batch_size=8, crop_min=0.08, seed=5):
                kept = ~torch.isin(batch.index, train.index[which])
                linear.zero_grad()
                F.cross_entropy(linear(batch.features[kept]), batch.labels[kept]).backward()
                sgd.param_groups[0]["lr"] = 8 * rate * cosine_by_step(step, 75, 3)
                sgd.step()
                step += 1
        right = linear(train.features[which]).argmax(1) == train.labels[which]
        assert table[f"{rate:g}"] == pytest.approx(float(right.double().mean()))


def test_twins_judge_and_heads_are_scored_where_all_is_learned_by_heart() -> None:
    """As many dimensions as images, labels at random, and the test images are the training images."""
    task = PlainTask(num_train=300, width=300).change("train", permuted)
    task.splits["val"] = task.splits["train"]
    evaluation = replace(SWEEP, epochs=20, base_batch_size=None).evaluate(task)
    assert max(evaluation.details["held_out_top1"].values()) < 0.7
    assert evaluation.scores["top1"] == 1


@EVERY
def test_features_that_tell_classes_apart_score_above_chance(name: str) -> None:
    """With rates that are per image: scaled down to so few, LARS's would hardly leave the start."""
    protocol = replace(PROTOCOLS[name], batch_size=20, base_batch_size=1 if name != "moco-v2" else None)
    evaluation = protocol.evaluate(PlainTask(num_train=300))
    assert evaluation.scores["top1"] > 0.7
    assert evaluation.confusion is not None
    assert float(evaluation.confusion.diagonal().sum() / evaluation.confusion.sum()) == pytest.approx(
        evaluation.scores["top1"]
    )


def permuted(rows: Features) -> Features:
    assert rows.labels is not None
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return replace(rows, labels=rows.labels[order])


def test_permuted_test_labels_give_chance_and_change_nothing_that_was_chosen() -> None:
    protocol = replace(SWEEP, learning_rates=(1e-9, 0.1, 0.4))
    honest = protocol.evaluate(PlainTask(num_test=900))
    permuted_labels = protocol.evaluate(PlainTask(num_test=900).change("val", permuted))
    assert honest.scores["top1"] > 0.7
    assert permuted_labels.scores["top1"] == pytest.approx(1 / 3, abs=0.06)
    assert permuted_labels.chosen == honest.chosen
    assert permuted_labels.details == honest.details


def test_permuted_training_labels_give_chance() -> None:
    """Among many clusters: one of few may be called rightly by luck."""
    honest = PlainTask(num_train=900, num_test=900, num_classes=30, width=30)
    assert SWEEP.evaluate(honest).scores["top1"] > 0.7
    assert SWEEP.evaluate(honest.change("train", permuted)).scores["top1"] < 0.15


def test_test_images_are_asked_for_once_and_after_the_last_epoch() -> None:
    task = PlainTask()
    SWEEP.evaluate(task)
    assert task.asked == ["train", "epoch 0", "epoch 1", "epoch 2", "val"]


def test_one_head_has_nothing_to_choose_and_holds_nothing_out() -> None:
    task = PlainTask()
    evaluation = replace(MOCO_V2, epochs=2).evaluate(task)
    assert task.asked == ["epoch 0", "epoch 1", "val"]
    assert evaluation.chosen == {}
    assert evaluation.at_edge == ()
    assert "held_out_top1" not in evaluation.details
    assert replace(MOCO_V2, epochs=2).train(task).twins == {}


@pytest.mark.parametrize(
    ("rates", "edge"),
    [((1e-9, 0.4), ("learning_rate",)), ((0.4, 1e-9), ("learning_rate",)), ((1e-9, 0.4, 1e9), ())],
)
def test_a_rate_at_the_edge_of_its_grid_is_named(rates: tuple[float, ...], edge: tuple[str, ...]) -> None:
    """The start is a random classifier, and a rate of 1e-9 stays there."""
    evaluation = replace(SWEEP, learning_rates=rates, base_batch_size=None).evaluate(PlainTask())
    assert evaluation.chosen["learning_rate"] == 0.4
    assert evaluation.at_edge == edge


def test_of_equally_good_settings_the_first_is_chosen() -> None:
    assert replace(SWEEP, learning_rates=(0.2, 0.2, 0.2)).evaluate(PlainTask()).chosen == {"learning_rate": 0.2}
    protocol = replace(DINOV2, epochs=1, batch_size=20, learning_rates=(1e-12,), initial_std=0.0)
    evaluation = protocol.evaluate(PlainTask().change("train", lambda rows: replace(rows, features=0 * rows.features)))
    assert evaluation.chosen == {"learning_rate": 1e-12, "input": "narrow"}


def test_a_batch_larger_than_the_data_is_lowered_and_the_rate_with_it_where_the_recipe_scales_it() -> None:
    for protocol, rate in ((MAE, 0.1 * 60 / 256), (SIMCLR_SGD, 0.1 * 60 / 256), (MOCO_V2, 30.0)):
        details = replace(protocol, epochs=2).evaluate(PlainTask()).details
        assert details["batch_size"] == 60
        assert details["batch_size_lowered_from"] == protocol.batch_size
        assert details["scaled_learning_rates"] == pytest.approx((rate,))
        assert details["steps"] == details["epochs"] == 2
    assert "batch_size_lowered_from" not in replace(MOCO_V2, epochs=2, batch_size=60).evaluate(PlainTask()).details


@EVERY
def test_images_without_a_label_take_no_part(name: str, double: None) -> None:
    """One batch an epoch, so that the labelled images are the same at every step."""

    def with_unlabelled(rows: Features) -> Features:
        assert rows.labels is not None
        return Features(
            torch.cat([rows.features, 50 + rows.features[:30]]),
            torch.cat([rows.labels, torch.full((30,), -1)]),
            torch.cat([rows.index, 1000 + torch.arange(30)]),
        )

    class Still(PlainTask):
        def augmented(self, epoch: int, **options: Any) -> Iterator[AugmentedBatch]:
            train = self.splits["train"]
            assert train.labels is not None
            yield AugmentedBatch(train.features, train.labels, train.index)

    protocol = replace(PROTOCOLS[name], epochs=3, base_batch_size=None)
    clean = Still()
    mixed = Still().change("train", with_unlabelled).change("val", with_unlabelled)
    one, other = protocol.evaluate(clean), protocol.evaluate(mixed)
    assert other.num_train == one.num_train == 60
    assert other.num_test == one.num_test == 45
    assert other.scores == one.scores
    assert other.chosen == one.chosen
    for key, heads in protocol.train(clean).heads.items():
        torch.testing.assert_close(protocol.train(mixed).heads[key].weights, heads.weights)


@pytest.mark.parametrize("protocol", [SWEEP, MOCO_V2], ids=["several heads", "one head"])
def test_no_label_at_all_is_an_error(protocol: SGDProtocol) -> None:
    task = PlainTask().change("train", lambda rows: replace(rows, labels=torch.full((60,), -1)))
    with pytest.raises(ValueError, match=r"None of the 60 (training )?images has a label"):
        replace(protocol, epochs=1).evaluate(task)


@pytest.mark.parametrize("split", ["train", "val"])
def test_features_that_are_not_finite_are_an_error(split: Split) -> None:
    def overflow(rows: Features) -> Features:
        return replace(rows, features=rows.features.index_fill(0, torch.tensor([3]), torch.inf))

    for protocol in (SWEEP, replace(MOCO_V2, epochs=1)):
        with pytest.raises(ValueError, match=r"1 of \d+ feature vectors hold infinities or NaN"):
            protocol.evaluate(PlainTask().change(split, overflow))


def test_test_images_of_a_class_that_is_not_trained_on_are_an_error() -> None:
    task = PlainTask().change("val", lambda rows: replace(rows, labels=torch.full((45,), 3)))
    with pytest.raises(ValueError, match="The test images have label 3, but num_classes is 3"):
        replace(MOCO_V2, epochs=1).evaluate(task)


def test_progress_is_told_of_every_step() -> None:
    told: list[tuple[str, int, int]] = []
    SWEEP.evaluate(PlainTask(), progress=lambda *step: told.append(step))
    assert told == [("training steps", done, 9) for done in range(1, 10)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs = 0, batch_size = 20: each is 1 at least"),
        ({"batch_size": 0}, "epochs = 3, batch_size = 0: each is 1 at least"),
        ({"learning_rates": ()}, "give one or more, each greater than 0"),
        ({"learning_rates": (0.1, 0.0)}, "give one or more, each greater than 0"),
    ],
)
def test_settings_that_train_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SWEEP, **change)


def evaluated() -> tuple[Evaluation, Tensor]:
    return SWEEP.evaluate(PlainTask(), seed=1), SWEEP.train(PlainTask(), seed=1).heads["output"].weights


def test_every_rank_has_the_heads_of_one_process(two_ranks: Ranks) -> None:
    """A task gives every rank the whole batch."""
    evaluation, weights = evaluated()
    for other, other_weights in two_ranks(evaluated):
        assert other_weights.equal(weights)
        assert other.scores == evaluation.scores
        assert other.chosen == evaluation.chosen
        assert other.details == evaluation.details


def test_another_seed_draws_another_start() -> None:
    still = replace(SWEEP, learning_rates=(1e-30, 1e-30))
    one, again, other = (still.train(PlainTask(), seed=seed).heads["output"].weights for seed in (0, 0, 1))
    assert one.equal(again)
    assert not one.allclose(other)
