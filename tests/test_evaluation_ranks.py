"""Evaluation by one, two and three processes: the same images, each once, and the same counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive.augmentations import simclr_views
from contrastive.data import TensorImages
from contrastive.evaluation import KNNClassifier
from contrastive.evaluation.protocols import PROTOCOLS, AugmentedBatch, SGDProtocol
from contrastive.runs.frozen import FrozenTask
from tests import tiny
from tests.ranks import Ranks
from tests.reference_augmentations import photographs

NUM_TRAIN, NUM_VAL = 17, 11  # neither 2 nor 3 divides them


@pytest.fixture(params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    """Two or three real processes."""
    ranks: Ranks = request.getfixturevalue({2: "two_ranks", 3: "three_ranks"}[request.param])
    return ranks


def task(**options: Any) -> FrozenTask:
    """The same on every rank: noisy images of three classes, so that some are taken for others."""
    torch.manual_seed(0)
    images, labels = photographs(NUM_TRAIN + NUM_VAL, 10, 12, seed=3), torch.arange(NUM_TRAIN + NUM_VAL) % 3
    train, val = slice(0, NUM_TRAIN), slice(NUM_TRAIN, None)
    data = TensorImages(images[train], labels[train], images[val], labels[val], batch_size=3)
    return FrozenTask(tiny.DenseEncoder(), simclr_views(8, blur=False), data, **options)


def features() -> list[Tensor]:
    whole = task()
    found = [whole.features(split) for split in ("train", "val")]
    return [part for each in found for part in (each.features, each.labels, each.index)]


def batches(batch_size: int, exclude: list[int]) -> list[AugmentedBatch]:
    whole = task(exclude=torch.tensor(exclude, dtype=torch.int64))
    return list(whole.augmented(2, batch_size=batch_size, crop_min=0.2, seed=1))


def found_by(name: str) -> tuple[Any, ...]:
    protocol = PROTOCOLS[name]
    if isinstance(protocol, SGDProtocol):
        protocol = replace(protocol, epochs=3, batch_size=5)
    found = protocol.evaluate(task(exclude=torch.tensor([4])), seed=1)
    assert found.confusion is not None
    return found.scores, found.chosen, found.num_train, found.num_test, found.confusion.tolist()


def neighbours() -> tuple[Any, ...]:
    whole = task()
    bank = KNNClassifier(whole.features("train"), num_classes=3)
    (found,) = bank.evaluate(whole.features("val"), k=[5], temperature=[0.1])
    return found.top1, found.num_bank, found.num_test


def test_features_are_those_of_one_process(ranks: Ranks) -> None:
    expected = features()
    assert [len(part) for part in expected] == [NUM_TRAIN] * 3 + [NUM_VAL] * 3
    for found in ranks(features):
        for part, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("batch_size", "exclude"), [(5, []), (4, [0, 8, 16]), (1, []), (17, [])])
def test_batches_are_those_of_one_process_where_ranks_do_not_divide_them(
    ranks: Ranks, batch_size: int, exclude: list[int]
) -> None:
    expected = batches(batch_size, exclude)
    assert len(expected) == (NUM_TRAIN - len(exclude)) // batch_size
    for found in ranks(batches, batch_size, exclude):
        for one, other in zip(found, expected, strict=True):
            assert one.index.equal(other.index)
            assert one.labels.equal(other.labels)
            assert len(one.index) == batch_size
            torch.testing.assert_close(one.features, other.features, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "lda", "moco-v3", "dinov2"])
def test_protocols_count_as_one_process_does_to_the_last_image(ranks: Ranks, name: str) -> None:
    expected = found_by(name)
    assert expected[2:4] == (NUM_TRAIN - 1, NUM_VAL)
    assert sum(map(sum, expected[4])) == NUM_VAL
    assert ranks(found_by, name) == [expected] * len(ranks.pipes)


def test_neighbours_count_as_one_process_does_to_the_last_image(ranks: Ranks) -> None:
    expected = neighbours()
    assert expected[1:] == (NUM_TRAIN, NUM_VAL)
    assert ranks(neighbours) == [expected] * len(ranks.pipes)
