"""What steps are watched of: anybody's module, and which of them, or of optimizers, are refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from contrastive.module import ContrastiveModule
from contrastive.runs.finite import FiniteLoss, NonFiniteWarning
from tests import tiny
from tests.methods import simclr
from tests.test_runs_finite import SGD, built, by


class Words(pl.LightningModule):
    """Somebody's own: sparse gradients, a frozen table of integers, a buffer that each step replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 3, sparse=True)
        self.lengths = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("total", torch.zeros(()))

    def training_step(self, words: Tensor, batch_idx: int) -> Tensor:
        total = self.table(words).sum() * (torch.nan if batch_idx == 2 else 1)
        self.total = self.total + total.detach()
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_anybodys_module_is_watched(tmp_path: Path) -> None:
    words = DataLoader(torch.arange(8), batch_size=2)
    pl.seed_everything(0, verbose=False)
    module = Words()
    before = module.table.weight.detach().clone()
    with pytest.warns(NonFiniteWarning, match=r"the loss is nan for batch 2\."):
        tiny.trainer([FiniteLoss(tmp_path, budget=1)], max_epochs=1).fit(module, words)
    moved = torch.tensor([1, 1, 1, 1, 0, 0, 1, 1])
    assert module.table.weight.equal(before - 0.1 * moved[:, None])
    torch.testing.assert_close(module.total, (before * moved[:, None]).sum())


def test_a_module_that_optimizes_by_hand_is_refused() -> None:
    module = built(simclr.build, SGD)
    module.automatic_optimization = False
    with pytest.raises(TypeError, match=r"SimCLR optimizes by hand .* Remove it, and check the losses in"):
        tiny.trainer([FiniteLoss()], max_epochs=1).fit(module, tiny.data())


def test_optimizers_whose_steps_cannot_be_left_out_are_refused(tmp_path: Path) -> None:
    def fit(module: ContrastiveModule, budget: int, plugins: Sequence[Any] = ()) -> None:
        guard = FiniteLoss(tmp_path, budget=budget)
        tiny.trainer([guard], max_epochs=1, plugins=list(plugins)).fit(module, tiny.data())

    repeated = by(torch.optim.LBFGS, lr=0.01, max_iter=2)
    with pytest.raises(TypeError, match=r"budget=1\) cannot leave out steps of LBFGS, which calls its closure repeat"):
        fit(repeated, 1)
    fit(repeated, 0)
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(
        TypeError, match=r"AdamW, which unscales gradients by itself \(fused=True\)\. Use .*fused=False"
    ):
        fit(by(torch.optim.AdamW, fused=True), 1, [scaled])
    fit(by(torch.optim.AdamW, fused=True), 1)


def test_a_budget_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget = -1: it is how many steps may be left out, 0 or more\."):
        FiniteLoss(budget=-1)
