"""Every method learns the drawn shapes: its features are worth more after a short training than before."""

import pytest
import pytorch_lightning as pl

from contrastive.data import Shapes
from contrastive.evaluation import linear_evaluation as linear_evaluation_of
from contrastive.evaluation.linear import L2_GRID
from contrastive.module import ContrastiveModule
from contrastive.runs.frozen import FrozenTask
from tests import tiny
from tests.methods import METHODS


def linear_evaluation(method: ContrastiveModule, data: Shapes) -> float:
    """Top-1 accuracy on unseen images of a linear classifier on the frozen features."""
    task = FrozenTask(method.evaluated_encoder, method.make_views, data)
    # Weaker strengths do not win here, and take a thousand iterations where two thousand images come apart.
    strengths = [strength for strength in L2_GRID if strength > 0.9e-4]
    return linear_evaluation_of(task.features("train"), task.features("val"), l2=strengths, tolerance=1e-4).top1


@pytest.mark.parametrize("name", METHODS)
def test_linear_evaluation_of_drawn_shapes_gains_by_training(name: str) -> None:
    case = METHODS[name]
    pl.seed_everything(0, verbose=False)
    method = case.on_shapes()
    data = Shapes(num_train=2_000, num_test=1_000, batch_size=64)
    before = linear_evaluation(method, data)
    tiny.trainer(max_epochs=case.epochs, limit_val_batches=0).fit(method, data)
    assert linear_evaluation(method, data) - before >= case.gain
