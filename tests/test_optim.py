"""The optimizers: LARS against its algorithm in plain loops, the schedule against its formula, who is decayed."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from contrastive.optim import (
    LARS,
    TrainingLength,
    adamw_cosine,
    lars_cosine,
    sgd_cosine,
    training_length,
    warmup_cosine,
)


def test_lars_equals_algorithm_1_in_plain_loops() -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    frozen_at_zero = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS(
        [{"params": [weight, frozen_at_zero], "weight_decay": 0.1}, {"params": [bias]}], lr=0.5, trust_coefficient=0.01
    )
    w, b, z = weight.tolist(), bias.tolist(), frozen_at_zero.tolist()
    velocity_w = [[0.0] * 3 for _ in range(4)]
    velocity_b = [0.0] * 4
    velocity_z = [[0.0] * 2 for _ in range(2)]
    for step in range(3):
        for parameter in (weight, bias, frozen_at_zero):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        g = [
            [gij + 0.1 * wij for gij, wij in zip(gi, wi, strict=True)]
            for gi, wi in zip(weight.grad.tolist(), w, strict=True)
        ]
        norm_w = math.sqrt(sum(x * x for row in w for x in row))
        norm_g = math.sqrt(sum(x * x for row in g for x in row))
        for i in range(4):
            for j in range(3):
                velocity_w[i][j] = 0.9 * velocity_w[i][j] + 0.01 * norm_w / norm_g * g[i][j]
                w[i][j] -= 0.5 * velocity_w[i][j]
            velocity_b[i] = 0.9 * velocity_b[i] + bias.grad[i].item()
            b[i] -= 0.5 * velocity_b[i]
        norm_z = math.sqrt(sum(x * x for row in z for x in row))
        gz = [
            [gij + 0.1 * zij for gij, zij in zip(gi, zi, strict=True)]
            for gi, zi in zip(frozen_at_zero.grad.tolist(), z, strict=True)
        ]
        norm_gz = math.sqrt(sum(x * x for row in gz for x in row))
        ratio = 0.01 * norm_z / norm_gz if norm_z > 0 else 1.0
        for i in range(2):
            for j in range(2):
                velocity_z[i][j] = 0.9 * velocity_z[i][j] + ratio * gz[i][j]
                z[i][j] -= 0.5 * velocity_z[i][j]
        optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor(w))
    torch.testing.assert_close(bias.data, torch.tensor(b))
    torch.testing.assert_close(frozen_at_zero.data, torch.tensor(z))


def test_lars_resumes_from_its_state() -> None:
    def steps(optimizer: LARS, parameter: nn.Parameter, numbers: range) -> None:
        for n in numbers:
            parameter.grad = torch.full_like(parameter, n + 1.0)
            optimizer.step()

    straight, resumed = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    steps(LARS([straight], lr=0.1), straight, range(4))
    first = LARS([resumed], lr=0.1)
    steps(first, resumed, range(2))
    second = LARS([resumed], lr=0.1)
    second.load_state_dict(first.state_dict())
    steps(second, resumed, range(2, 4))
    assert straight.equal(resumed)


def test_the_schedule_warms_up_linearly_and_falls_along_half_a_cosine() -> None:
    factors = [warmup_cosine(step, warmup_steps=4, steps=12) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).requires_grad_()


@pytest.mark.parametrize(
    ("make", "decay_of_the_rest"),
    [
        (sgd_cosine(0.1, weight_decay=0.3), 0.3),
        (sgd_cosine(0.1, weight_decay=0.3, decay_bias_and_norm=False), 0.0),
        (adamw_cosine(0.1, weight_decay=0.3, warmup_epochs=1), 0.0),
        (lars_cosine(0.1, weight_decay=0.3, warmup_epochs=1), 0.0),
    ],
    ids=["sgd", "sgd_without_bias_and_norm", "adamw", "lars"],
)
def test_weight_decay_falls_where_the_paper_has_it(make, decay_of_the_rest: float) -> None:
    module = network()
    module[0].weight.requires_grad_(False)  # frozen: in no group
    optimizer, _ = make(module, TrainingLength(steps=100, steps_per_epoch=10))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.3 if p.ndim > 1 else decay_of_the_rest for p in module.parameters() if p.requires_grad}
    assert decay == expected


def test_the_rate_follows_warm_up_epochs_in_optimizer_steps() -> None:
    module = network()
    optimizer, schedule = lars_cosine(2.0, warmup_epochs=0.5)(module, TrainingLength(steps=20, steps_per_epoch=10))
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 14 / 15))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sgd_cosine(0.0), "lr must be positive, got 0.0"),
        (lambda: lars_cosine(0.1, weight_decay=-1), "weight_decay must be zero or more, got -1"),
        (lambda: sgd_cosine(0.1, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: adamw_cosine(0.1, warmup_epochs=-2), "warmup_epochs must be zero or more, got -2"),
        (
            lambda: lars_cosine(0.1, warmup_epochs=10)(network(), TrainingLength(50, 10)),
            "warmup_epochs=10 takes 100 optimizer steps, but the run has only 50. Train longer or shorten the warm-up",
        ),
    ],
)
def test_bad_numbers_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class Counting(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        self.length = training_length(self.trainer)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(**settings) -> Counting:
    module = Counting()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(torch.zeros(24, 2), batch_size=4, num_workers=0))
    return module


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*logging interval")
def test_the_length_of_a_run_counts_optimizer_steps() -> None:
    assert fit(max_epochs=3).length == TrainingLength(steps=18, steps_per_epoch=6)
    assert fit(max_epochs=3, accumulate_grad_batches=2).length == TrainingLength(steps=9, steps_per_epoch=3)
    assert fit(max_epochs=-1, max_steps=4).length == TrainingLength(steps=4, steps_per_epoch=6)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*max_epochs")
def test_a_run_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="A cosine schedule needs an end: give the Trainer max_epochs or max_steps"):
        fit(max_epochs=-1)
