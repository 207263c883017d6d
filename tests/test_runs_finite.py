"""A step that is not finite: what is left out is as if it never was, what stops leaves everything as it was before."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from contrastive.augmentations import SampleKey
from contrastive.callbacks import LinearProbe
from contrastive.distributed import rank, world_size
from contrastive.evaluation import LinearHeads
from contrastive.module import Batch, ContrastiveModule, Step, Views
from contrastive.optim import MakeOptimizer, TrainingLength, adamw_cosine, lars_cosine, sgd_cosine
from contrastive.runs.checkpoints import WholeCheckpoints
from contrastive.runs.finite import RECORD, FiniteLoss, NonFiniteError, NonFiniteWarning
from contrastive.runs.last_checkpoint import LastCheckpoint
from tests import tiny
from tests.methods import byol, dino, moco, nnclr, simclr, swav
from tests.ranks import Ranks
from tests.watched import as_torchrun

BREAKS = {  # what becomes of the loss
    "nan": lambda loss, weight: loss * torch.nan,
    "inf": lambda loss, weight: loss + torch.inf,  # whose gradient is finite
    "gradient": lambda loss, weight: loss + (weight.sum() * 0).sqrt(),  # which is finite, but not its gradient
}
EPOCHS, BATCHES = 3, 4  # of tiny.data()


def breaking(
    module: ContrastiveModule, at: Iterable[int], how: str = "views", *, ranks: Sequence[int] = (0, 1)
) -> ContrastiveModule:
    """The module; the views, loss or gradient of these of its batches (from 0) are not finite on these ranks."""
    step, calls, at = module.step, iter(range(10**6)), frozenset(at)

    def broken(views: Views, batch: Batch) -> Step:
        if next(calls) not in at or rank() not in ranks:
            return step(views, batch)
        if how == "views":  # which poisons features, queue, centre and BatchNorm's statistics as well
            return step([view * torch.nan for view in views], batch)
        made = step(views, batch)
        return made._replace(loss=BREAKS[how](made.loss, next(module.encoder.parameters())))

    module.step = broken
    return module


class Batches(pl.Callback):
    """Keeps the batches, each with its epoch, and what the steps returned."""

    def __init__(self) -> None:
        self.seen: list[tuple[Batch, int]] = []
        self.outputs: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((batch, trainer.current_epoch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All numbers that training changes, copied."""
    states = optimizer.state_dict()["state"]
    return {name: value.clone() for name, value in module.state_dict().items()} | {
        f"optimizer/{number}/{key}": torch.as_tensor(value).clone()
        for number, state in states.items()
        for key, value in state.items()
        if value is not None
    }


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.isfinite().all(), name
        assert value.equal(other[name]), name


def plain_loop(
    module: ContrastiveModule, seen: Sequence[tuple[Batch, int]], left_out: Iterable[int], accumulate: int = 1
) -> dict[str, Tensor]:
    """Plain torch, over ranks too: the steps that hold one of these batches are not taken, the schedule goes on."""
    steps = len(seen) // accumulate
    optimizer, schedule = module.make_optimizer(module, TrainingLength(steps, steps / (seen[-1][1] + 1)))
    for number in range(steps):
        places = range(number * accumulate, (number + 1) * accumulate)
        if not set(places) & set(left_out):
            optimizer.zero_grad()
            for place in places:
                batch, epoch = seen[place]
                for buffer in module.buffers() if world_size() > 1 else ():
                    dist.broadcast(buffer, src=0)  # as DistributedDataParallel does
                views = module.make_views(batch["image"], SampleKey(module.seed, epoch, batch["index"]))
                (module.step(views, batch).loss / accumulate).backward()
            for parameter in module.parameters():
                if world_size() > 1 and parameter.grad is not None:
                    dist.all_reduce(parameter.grad.div_(world_size()))
            optimizer.step()
            module.after_optimizer_step(min(1.0, number / (steps - 1)))
        schedule.step()
    return state_of(module, optimizer)


def built(build: Callable[[], ContrastiveModule], make_optimizer: MakeOptimizer) -> ContrastiveModule:
    pl.seed_everything(0, verbose=False)
    module = build()
    module.make_optimizer = make_optimizer
    return module


SGD, ADAMW = sgd_cosine(0.1, nesterov=True), adamw_cosine(0.01, warmup_epochs=1, final_weight_decay=0.2)
LARS = lars_cosine(1.0, warmup_epochs=1)


def by(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> ContrastiveModule:
    """A module that is trained by it."""

    def make(module: nn.Module, length: TrainingLength) -> Any:
        made = optimizer(module.parameters(), **options)
        return made, LambdaLR(made, lambda step: 1.0)

    return built(simclr.build, make)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # where the loop does not take the first step
@pytest.mark.parametrize(
    ("build", "make_optimizer", "accumulate", "at"),
    [
        (moco.build, SGD, 1, [3, 4, 9]),
        (moco.build, LARS, 2, [1, 6]),
        (dino.build, ADAMW, 1, [5]),
        (dino.build, SGD, 2, [4]),
        (byol.build, LARS, 1, [0, 1]),
        (nnclr.build, ADAMW, 4, [2]),
        (swav.build, ADAMW, 1, [0, 11]),  # the first step and the last
    ],
)
def test_a_run_that_leaves_steps_out_is_bit_for_bit_a_plain_loop_that_does_not_take_them(
    tmp_path: Path,
    build: Callable[[], ContrastiveModule],
    make_optimizer: MakeOptimizer,
    accumulate: int,
    at: list[int],
) -> None:
    module, batches = built(build, make_optimizer), Batches()
    guard = FiniteLoss(tmp_path, budget=3)
    trainer = tiny.trainer([batches, guard], max_epochs=EPOCHS, accumulate_grad_batches=accumulate)
    with pytest.warns(NonFiniteWarning):
        trainer.fit(breaking(module, at), tiny.data())
    assert len(batches.seen) == EPOCHS * BATCHES
    assert guard.skipped_steps == len(at)
    assert trainer.callback_metrics["train/skipped_steps"] == len(at)
    expected = plain_loop(built(build, make_optimizer), batches.seen, at, accumulate)
    assert_equal(state_of(module, trainer.optimizers[0]), expected)


@pytest.mark.parametrize("how", BREAKS)
def test_loss_and_gradient_are_both_watched(tmp_path: Path, how: str) -> None:
    module, batches = breaking(built(moco.build, SGD), [5], how), Batches()
    trainer = tiny.trainer([batches, FiniteLoss(tmp_path, budget=1)], max_epochs=EPOCHS)
    with pytest.warns(NonFiniteWarning, match=r"It is left out, as 1 of at most 1\."):
        trainer.fit(module, tiny.data())
    assert_equal(state_of(module, trainer.optimizers[0]), plain_loop(built(moco.build, SGD), batches.seen, [5]))


class Before(pl.Callback):
    """What a batch began with, and the checkpoints that lay there."""

    def __init__(self, at: int, folder: Path) -> None:
        self.at, self.folder = at, folder
        self.state: dict[str, Tensor] = {}
        self.files: dict[str, bytes] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.at:
            self.state = state_of(pl_module, trainer.optimizers[0])
            self.files = {file.name: file.read_bytes() for file in self.folder.iterdir()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("how", ["views", *BREAKS])
def test_stopping_leaves_the_run_and_its_checkpoints_as_they_were_before_the_step(
    tmp_path: Path, how: str, precision: str
) -> None:
    module, before = breaking(built(moco.build, SGD), [6], how), Before(6, tmp_path)
    trainer = tiny.trainer(
        [before, LastCheckpoint(tmp_path, every_minutes=1e-9), FiniteLoss(tmp_path)],
        max_epochs=EPOCHS,
        precision=precision,
        enable_checkpointing=True,
        plugins=[WholeCheckpoints()],
    )
    with pytest.raises(NonFiniteError, match=r"Step 7, in epoch 1, is not finite: ") as caught:
        trainer.fit(module, tiny.data())
    assert_equal(state_of(module, trainer.optimizers[0]), before.state)
    assert f"The newest checkpoint is {tmp_path / 'last.ckpt'}." in str(caught.value)
    assert "last.ckpt" in before.files
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != RECORD} == before.files


def test_what_others_save_on_the_exception_is_finite(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_on_exception=True)
    trainer = tiny.trainer(
        [saver, FiniteLoss(tmp_path)], max_epochs=EPOCHS, enable_checkpointing=True, plugins=[WholeCheckpoints()]
    )
    with pytest.raises(NonFiniteError, match=r"There is no checkpoint yet\. Lower"):
        trainer.fit(breaking(built(moco.build, SGD), [2]), tiny.data())
    (file,) = tmp_path.glob("*.ckpt")
    assert all(v.isfinite().all() for v in WholeCheckpoints().load_checkpoint(file)["state_dict"].values())


def test_the_message_and_the_record_say_where_and_what_to_do(tmp_path: Path) -> None:
    batches, settings = Batches(), {"max_epochs": EPOCHS, "accumulate_grad_batches": 2, "default_root_dir": tmp_path}
    module = breaking(built(simclr.build, SGD), [3, 7], "inf")
    with pytest.warns(NonFiniteWarning), pytest.raises(NonFiniteError) as caught:
        tiny.trainer([batches, FiniteLoss(budget=1)], **settings).fit(module, tiny.data())
    index = [batch["index"].tolist() for batch, _ in batches.seen]
    first = ", ".join(map(str, index[7][:5]))
    assert str(caught.value) == (
        f"Step 4, in epoch 1, is not finite: the loss is inf for the images {first} and 11 more of batch 3. "
        f"{tmp_path / RECORD} has all. There is no checkpoint yet. The budget of 1 is spent. Lower the learning rate "
        'or lengthen its warm-up; train in a wider precision ("bf16-mixed" or "32-true" in place of "16-mixed"); look '
        "at these images; or have some such steps left out: FiniteLoss(budget=10), --skip-non-finite 10."
    )
    skipped, stopped = json.loads((tmp_path / RECORD).read_text())
    assert [skipped[key] for key in ("step", "epoch", "outcome")] == [2, 0, "skipped"]
    assert [stopped[key] for key in ("step", "epoch", "outcome")] == [4, 1, "stopped"]
    for event, place in ((skipped, 2), (stopped, 6)):
        (found,) = event["ranks"]
        assert [batch["images"] for batch in found["batches"]] == index[place : place + 2]
        assert [batch["batch"] for batch in found["batches"]] == [2, 3]
        assert found["batches"][1]["loss"] == "inf"
        assert found["gradients"] == found["weights"] == []
    finite = skipped["ranks"][0]["batches"][0]["loss"]  # the loss of the batch, not its part of the step
    assert finite == pytest.approx(float(batches.outputs[2]["loss"]) * 2)


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    module = breaking(built(simclr.build, SGD), [0], "gradient")
    with pytest.raises(
        NonFiniteError, match=r"the gradient of encoder\.0\.weight, with finite losses, for the images .* of batch 0\."
    ):
        tiny.trainer([FiniteLoss(tmp_path)], max_epochs=1).fit(module, tiny.data())


def test_weights_that_were_not_finite_before_are_named(tmp_path: Path) -> None:
    module = built(simclr.build, SGD)
    nn.init.constant_(module.projector[0].weight, torch.nan)
    with pytest.raises(NonFiniteError, match=r"weights were not before it, projector\.0\.weight\. .*non_finite\.json"):
        tiny.trainer([FiniteLoss(tmp_path)], max_epochs=1).fit(module, tiny.data())


def test_the_budget_is_the_runs_and_survives_a_resume(tmp_path: Path) -> None:
    def fit(guard: FiniteLoss, at: Sequence[int], epochs: int, folder: Path, resumed: Path | None = None) -> None:
        callbacks = [guard, LastCheckpoint(folder)]
        trainer = tiny.trainer(callbacks, max_epochs=epochs, enable_checkpointing=True, plugins=[WholeCheckpoints()])
        trainer.fit(breaking(by(torch.optim.SGD, lr=0.1), at), tiny.data(), ckpt_path=resumed)

    guard = FiniteLoss(tmp_path, budget=2)
    with pytest.warns(NonFiniteWarning, match="1 of at most 2"):
        fit(guard, [1], 1, tmp_path)
    for number, resumed in enumerate((FiniteLoss(tmp_path, budget=2), guard)):
        with (
            pytest.warns(NonFiniteWarning, match="2 of at most 2"),
            pytest.raises(NonFiniteError, match=r"The budget of 2 is spent\."),
        ):
            fit(resumed, [1, 2], 2, tmp_path / str(number), tmp_path / "last.ckpt")
    with pytest.warns(NonFiniteWarning, match="1 of at most 2"):  # a new run has a budget of its own
        fit(guard, [1], 1, tmp_path / "new")


def test_weights_that_are_not_finite_never_overwrite_a_checkpoint(tmp_path: Path) -> None:
    class Overflow(pl.Callback):
        """By the step before a checkpoint, which no loss has told of yet."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2 * BATCHES:
                nn.init.constant_(pl_module.encoder[0].bias, torch.inf)

    saver = ModelCheckpoint(tmp_path, filename="newest", enable_version_counter=False)
    trainer = tiny.trainer(
        [saver, Overflow(), FiniteLoss(tmp_path)],
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        plugins=[WholeCheckpoints()],
    )
    with pytest.raises(
        NonFiniteError, match=r"after step 8: encoder\.0\.bias\. No checkpoint .* checkpoint is .*newest\.ckpt\."
    ):
        trainer.fit(built(simclr.build, SGD), tiny.data())
    saved = WholeCheckpoints().load_checkpoint(tmp_path / "newest.ckpt")
    assert saved["global_step"] == BATCHES
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_probe_learns_nothing_from_features_that_are_not_finite(tmp_path: Path) -> None:
    probe, batches = LinearProbe(4, learning_rates=(0.1, 0.3)), Batches()
    with pytest.warns(NonFiniteWarning):
        tiny.trainer([probe, batches, FiniteLoss(tmp_path, budget=2)], max_epochs=1).fit(
            breaking(built(moco.build, SGD), [0, 2]), tiny.data()
        )
    heads = LinearHeads(4, (0.1, 0.3))
    for place in (1, 3):
        outputs = batches.outputs[place]
        heads.update(outputs["features"], outputs["labels"].repeat(len(outputs["features"]) // 16))
    assert_equal(probe.heads.state_dict(), heads.state_dict())


def test_a_gradient_scaler_finds_its_scale_undisturbed_and_losses_still_count(tmp_path: Path) -> None:
    def fit(module: ContrastiveModule, budget: int) -> tuple[FiniteLoss, dict[str, Tensor], float]:
        guard, scaler = FiniteLoss(tmp_path, budget=budget), torch.amp.GradScaler("cpu", init_scale=2.0**8)
        precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        trainer = tiny.trainer([guard], max_epochs=1, plugins=[precision])
        trainer.fit(module, tiny.data())
        return guard, state_of(module, trainer.optimizers[0]), scaler.get_scale()

    guard, _, scale = fit(breaking(built(moco.build, SGD), [2], "gradient"), 1)
    assert (guard.skipped_steps, scale) == (0, 2.0**7)
    for how in ("views", "inf"):  # with and without a gradient that the scaler would object to
        with pytest.warns(NonFiniteWarning):
            guard, state, _ = fit(breaking(built(moco.build, SGD), [2], how), 1)
        assert guard.skipped_steps == 1
        assert all(value.isfinite().all() for value in state.values())
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        fit(breaking(built(moco.build, SGD), [2]), 0)


def test_large_gradients_whose_norm_overflows_are_finite(tmp_path: Path) -> None:
    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None])
            assert gradients.isfinite().all()
            seen.append(gradients.norm())

    seen: list[Tensor] = []
    module = by(torch.optim.SGD, lr=1e-35)
    step = module.step

    def steep(views: Views, batch: Batch) -> Step:
        made = step(views, batch)
        return made._replace(loss=made.loss * 1e30)

    module.step = steep
    tiny.trainer([FiniteLoss(tmp_path), Norms()], max_epochs=1).fit(module, tiny.data())
    assert [float(norm) for norm in seen] == [torch.inf] * BATCHES


# Ranks


def fit_on_ranks(folder: Path, how: str, budget: int) -> dict[str, Any]:
    """Only rank 1's third batch is broken."""
    as_torchrun()
    module, batches = breaking(built(moco.build, SGD), [2], how, ranks=[1]), Batches()
    settings = {"strategy": "ddp", "devices": world_size(), "limit_val_batches": 0}  # validating moves rank 1's buffers
    trainer = tiny.trainer([batches, FiniteLoss(folder, budget=budget)], max_epochs=2, **settings)
    error = ""
    try:
        trainer.fit(module, tiny.data(batch_size=8))
    except NonFiniteError as raised:
        error = str(raised)
    state = state_of(module, trainer.optimizers[0])
    plain = plain_loop(built(moco.build, SGD), batches.seen, [2]) if budget else {}
    index = batches.seen[2][0]["index"].tolist()
    return {"error": error, "state": state, "plain": plain, "index": index, "batches": len(batches.seen)}


@pytest.mark.filterwarnings("default::contrastive.runs.finite.NonFiniteWarning")
@pytest.mark.parametrize("how", ["views", *BREAKS])
def test_what_one_rank_finds_stops_all_of_them(two_ranks: Ranks, tmp_path: Path, how: str) -> None:
    first, second = two_ranks(fit_on_ranks, tmp_path, how, 0)
    assert first["error"] == second["error"] != ""
    assert (first["batches"], second["batches"]) == (3, 3)
    (event,) = json.loads((tmp_path / RECORD).read_text())
    assert [found["batches"][0]["images"] for found in event["ranks"]] == [first["index"], second["index"]]
    losses = [found["batches"][0]["loss"] for found in event["ranks"]]
    if how in ("nan", "inf"):  # MoCo's loss is the rank's own
        assert (isinstance(losses[0], float), losses[1]) == (True, how)
        assert f"rank 1: the loss is {how} for the images {second['index'][0]}, " in first["error"]
        assert "rank 0" not in first["error"]
    for result in (first, second):
        assert all(value.isfinite().all() for value in result["state"].values())


@pytest.mark.parametrize("how", ["views", *BREAKS])
def test_what_one_rank_finds_is_left_out_by_all_of_them(two_ranks: Ranks, tmp_path: Path, how: str) -> None:
    for result in two_ranks(fit_on_ranks, tmp_path, how, 1):
        assert result["error"] == ""
        assert_equal(result["state"], result["plain"])
