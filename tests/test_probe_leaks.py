"""No label leaks: neither into the encoder, nor from the validation images into what is learned and chosen."""

from dataclasses import dataclass
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from contrastive.callbacks import KNNProbe, LinearProbe
from tests.test_callbacks import assert_equal
from tests.watched import Anybodys, PictureData, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Found 1 module.s. in eval mode",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)
NUM_CLASSES, NUM_TRAIN, NUM_VAL = 4, 320, 400
CHANCE = 0.08  # almost four standard deviations of 400 guesses
SCORES = ("linear_probe/top1", "lda/top1", "linear_evaluation/top1", "knn/top1")


class Sides(PictureData):
    """Pictures of noise, whose class is which of their four quarters is the brightest: no two are alike, so that what
    is learned of permuted labels is different for every picture.
    """

    num_classes = NUM_CLASSES

    def __init__(self, *, permute: str = "") -> None:
        super().__init__(train=NUM_TRAIN, val=(NUM_VAL,))
        for name, pictures in (("train", self.train), ("val", self.val[0])):
            generator = torch.Generator().manual_seed(len(pictures))
            pictures.images = torch.randint(256, pictures.images.shape, generator=generator, dtype=torch.uint8)
            quarters = nn.functional.avg_pool2d(pictures.images.float().mean(1), 2).flatten(1)
            pictures.labels = quarters.argmax(1)
            if name == permute:
                pictures.labels = pictures.labels[torch.randperm(len(pictures), generator=generator)]


class Wide(Anybodys):
    """Its features keep all there is to see."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.BatchNorm1d(64))
        self.frozen = nn.BatchNorm1d(64).eval()


@dataclass
class Run:
    metrics: dict[str, float]
    encoder: dict[str, Tensor]
    heads: dict[str, Tensor]


def trained(permute: str = "") -> Run:
    pl.seed_everything(0, verbose=False)
    module, online = Wide(), LinearProbe(NUM_CLASSES)
    fitted: list[Any] = [
        LinearProbe(solver="lda"),
        LinearProbe(solver="logistic", l2=[1e-2, 1e-1, 1.0]),
        KNNProbe(k=20),
    ]
    trainer = quiet([online, *fitted], max_epochs=6)
    trainer.fit(module, Sides(permute=permute))
    return Run({k: float(v) for k, v in trainer.callback_metrics.items()}, module.state_dict(), online.state_dict())


@pytest.fixture(scope="module")
def honest() -> Run:
    return trained()


@pytest.fixture(scope="module")
def permuted_in_training() -> Run:
    return trained("train")


@pytest.fixture(scope="module")
def permuted_in_validation() -> Run:
    return trained("val")


@pytest.mark.parametrize("score", SCORES)
def test_permuted_training_labels_give_chance_accuracy_on_true_validation_labels(
    honest: Run, permuted_in_training: Run, score: str
) -> None:
    assert honest.metrics[score] > 0.4
    assert permuted_in_training.metrics[score] == pytest.approx(1 / NUM_CLASSES, abs=CHANCE)


def test_permuted_training_labels_leave_the_encoder_bit_identical(honest: Run, permuted_in_training: Run) -> None:
    assert_equal(permuted_in_training.encoder, honest.encoder)
    assert not permuted_in_training.heads["weights"].equal(honest.heads["weights"])


@pytest.mark.parametrize("score", SCORES)
def test_permuted_validation_labels_give_chance_accuracy(permuted_in_validation: Run, score: str) -> None:
    assert permuted_in_validation.metrics[score] == pytest.approx(1 / NUM_CLASSES, abs=CHANCE)


def test_permuted_validation_labels_change_nothing_but_the_scores(honest: Run, permuted_in_validation: Run) -> None:
    assert_equal(permuted_in_validation.encoder, honest.encoder)
    assert_equal(permuted_in_validation.heads, honest.heads)
    others = honest.metrics.keys() - SCORES
    assert {
        "linear_probe/lr",
        "linear_probe/train_top1",
        "linear_evaluation/l2",
        "linear_evaluation/l2_at_edge",
    } == others
    assert {key: permuted_in_validation.metrics[key] for key in others} == {key: honest.metrics[key] for key in others}
