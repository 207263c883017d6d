"""Callbacks under DistributedDataParallel, on real processes: exact counts, equal ranks, an untouched encoder."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from contrastive.callbacks import KNNProbe, LinearProbe, RepresentationMonitor
from contrastive.callbacks.places import Places
from contrastive.callbacks.tally import Tally
from contrastive.data import TensorImages
from contrastive.data.samplers import ExactSampler
from contrastive.distributed import rank, world_size
from contrastive.evaluation import effective_rank, feature_std
from tests import tiny
from tests.methods import METHODS
from tests.ranks import Ranks
from tests.watched import (
    Anybodys,
    PairData,
    Pairs,
    PictureData,
    Pictures,
    Seen,
    Somebodys,
    as_torchrun,
    quiet,
)

NUM_VAL = 21  # on two ranks the sampler pads it to 22
NUM_ODD = 23  # on two and three ranks it pads to 24


def fit(folder: Path | None, hidden: frozenset[str], watched: bool) -> dict[str, Any]:
    """Train on this rank, with Lightning's own DistributedSampler."""
    as_torchrun()
    pl.seed_everything(0, verbose=False)
    probe, seen = LinearProbe(6, data=PictureData(train=30, val=(20,), seed=7)), Seen()
    callbacks = [probe, KNNProbe(k=5), RepresentationMonitor(every_n_steps=100)] if watched else []
    checkpoint = ModelCheckpoint(folder, monitor="linear_probe/top1", mode="max") if watched and folder else None
    module = Anybodys(hidden=hidden)
    trainer = quiet(
        [*callbacks, seen, *([checkpoint] if checkpoint else [])],
        strategy="ddp",
        devices=dist.get_world_size(),
        enable_checkpointing=checkpoint is not None,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, PictureData(val=(NUM_VAL,)))
    return {
        "module": {name: value.clone() for name, value in module.state_dict().items()},
        "probe": probe.state_dict(),
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "first features of the last epoch": seen.train[len(seen.train) // 2]["features"] if watched else None,
        "warnings": [str(warning.message) for warning in caught],
        "best checkpoint": checkpoint.best_model_path if checkpoint else None,
    }


def features_of(state: dict[str, Tensor], images: Tensor) -> Tensor:
    module = Anybodys()
    module.load_state_dict(state)
    with torch.no_grad():
        return module.eval()(images)


@pytest.mark.parametrize("hidden", [frozenset(), frozenset({"index"})], ids=["index", "no index"])
def test_two_ranks_count_exactly_and_agree_and_leave_the_encoder_alone(
    two_ranks: Ranks, tmp_path: Path, hidden: frozenset[str]
) -> None:
    results = two_ranks(fit, tmp_path, hidden, True)
    first, second = results
    assert first["metrics"] == second["metrics"]
    assert first["best checkpoint"] == second["best checkpoint"] != ""
    for key, value in first["probe"].items():
        assert value.equal(second["probe"][key]), key
    assert not [message for result in results for message in result["warnings"] if "sync_dist" in message]

    data, probe = PictureData(val=(NUM_VAL,)), first["probe"]
    images, labels = data.val[0].images, data.val[0].labels
    # Running statistics of BatchNorm are a rank's own under DDP: each rank scores its images with its own encoder.
    features = torch.empty(NUM_VAL, 10)
    for number, result in enumerate(results):
        features[number::2] = features_of(result["module"], images[number::2])
    standard = (features - probe["mean"]) / (probe["variance"] + 1e-5).sqrt()
    weight = probe["weights"][int(probe["accuracy"].argmax())]
    right = int(((standard @ weight[:, :-1].T + weight[:, -1]).argmax(1) == labels).sum())
    assert 0 < right < NUM_VAL
    assert first["metrics"]["linear_probe/top1"] == pytest.approx(right / NUM_VAL)
    assert round(first["metrics"]["knn/top1"] * NUM_VAL, 4) % 1 == 0
    assert "linear_probe/transfer_top1" in first["metrics"]

    batch = torch.cat([result["first features of the last epoch"] for result in results])
    assert first["metrics"]["collapse/num_rows"] == len(batch) == 32
    assert first["metrics"]["collapse/feature_std"] == pytest.approx(float(feature_std(batch)), rel=1e-4)
    assert first["metrics"]["collapse/effective_rank"] == pytest.approx(float(effective_rank(batch)), rel=1e-4)

    for result, plain in zip(results, two_ranks(fit, None, hidden, False), strict=True):
        for name, value in plain["module"].items():
            assert value.equal(result["module"][name]), name


# The same images, however many ranks score them


def parts(kind: str) -> tuple[pl.LightningModule, pl.LightningDataModule, dict[str, Any]]:
    """A module, its data with labels that are hard to tell, and the probes' options."""
    if kind == "our data":
        torch.manual_seed(0)
        labels = torch.randint(3, (50,), generator=torch.Generator().manual_seed(1))
        data = TensorImages(
            tiny.images(50), labels, tiny.images(73)[50:], (labels + labels.roll(1))[:NUM_ODD] % 3, batch_size=8
        )
        return METHODS["simclr"].build(), data, {}
    module, pairs = Somebodys(), PairData(train=50, val=NUM_ODD)
    noise = torch.Generator().manual_seed(1)
    for pictures in (pairs.train, pairs.val):
        pictures.labels = torch.where(
            torch.rand(len(pictures), generator=noise) < 0.4, pictures.labels % 3, pictures.labels
        )
    bank = pairs.bank()
    if kind == "a bank dealt out":
        sampler: Any = DistributedSampler(bank.dataset, world_size(), rank(), shuffle=True)
        bank = DataLoader(bank.dataset, batch_size=5, sampler=sampler)
    return module, pairs, {"bank": bank, "layer": "backbone.avgpool"}


def validate(kind: str, heads: dict[str, Tensor]) -> dict[str, float]:
    """Every probe's accuracy on this many ranks, the sgd heads as they are given."""
    module, data, options = parts(kind)
    layer = {key: value for key, value in options.items() if key == "layer"}
    online = LinearProbe(6, **layer)
    online.load_state_dict(heads)
    fitted = [LinearProbe(solver="lda", **options), LinearProbe(solver="logistic", l2=[1e-3, 1e-2, 1e-1], **options)]
    ranks = {}
    if dist.is_initialized():
        as_torchrun()
        ranks = {"strategy": "ddp", "devices": dist.get_world_size()}
    trainer = quiet([online, *fitted, KNNProbe(k=3, **options)], **ranks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice to validate on one device
        (scores,) = trainer.validate(module, data, verbose=False)
    return {key: value for key, value in scores.items() if "/" in key}


@pytest.mark.parametrize("kind", ["our data", "ordinary loaders", "a bank dealt out"])
def test_two_and_three_ranks_score_every_image_as_one_process_does(
    two_ranks: Ranks, three_ranks: Ranks, kind: str
) -> None:
    width = 16 if kind == "our data" else 10
    draw = torch.Generator().manual_seed(2)
    heads = {
        "weights": torch.randn(6, 6, width + 1, generator=draw),
        "velocity": torch.zeros(6, 6, width + 1),
        "mean": torch.zeros(width),
        "variance": torch.ones(width),
        "accuracy": torch.tensor([0.1, 0.9, 0.2, 0.3, 0.4, 0.5]),
    }
    alone = validate(kind, heads)
    for name in ("linear_probe", "lda", "linear_evaluation", "knn"):
        right = alone[f"{name}/top1"] * NUM_ODD
        assert right == pytest.approx(round(right), abs=1e-4)
        assert 0 < round(right) < NUM_ODD
    for ranks in (two_ranks, three_ranks):
        for scores in ranks(validate, kind, heads):
            assert scores == alone


def validate_unevenly(shared: bool) -> str:
    """A bank without an index that the ranks read differently."""
    as_torchrun()
    data = PairData()
    mine = Pictures(20, seed=rank())
    bank = DataLoader(Pairs(mine, augment=False), batch_size=8)
    probe = LinearProbe(solver="lda", bank=data.bank() if shared else bank, layer="backbone.avgpool")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quiet([probe], strategy="ddp", devices=2).validate(Somebodys(), data, verbose=False)
        except ValueError as error:
            return str(error)
    return ""


def test_a_bank_that_ranks_read_differently_needs_an_index(two_ranks: Ranks) -> None:
    assert two_ranks(validate_unevenly, True) == ["", ""]
    for message in two_ranks(validate_unevenly, False):
        assert message.startswith("The ranks' banks differ, and their batches have no 'index'")


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("num_images", [5, 6, 7, 23])
def test_places_tell_images_apart_as_torchs_sampler_deals_them_out(num_ranks: int, num_images: int) -> None:
    images: Any = range(num_images)
    first: dict[int, int] = {}  # the image that has a place, and has it first
    again: list[tuple[int, int]] = []
    for one in range(num_ranks):
        sampler: Any = DistributedSampler(images, num_ranks, one, shuffle=True)
        order = list(sampler)
        places, repeats = Places(DataLoader(images, sampler=sampler)).next(len(order), torch.device("cpu"))
        for place, repeat, number in zip(places.tolist(), repeats.tolist(), order, strict=True):
            if repeat:
                again.append((place, number))
            else:
                first[place] = number
    assert sorted(first) == sorted(first.values()) == list(range(num_images))
    assert all(first[place] == number for place, number in again)
    assert len(again) == -num_images % num_ranks


def test_our_own_sampler_repeats_no_image_where_there_is_no_index() -> None:
    for one in range(2):
        sampler = ExactSampler(21, rank=one, world_size=2)
        tally = Tally(DataLoader(sampler.dataset, sampler=sampler), torch.device("cpu"))
        tally.add(torch.ones(len(sampler), 2).long(), torch.zeros(len(sampler)).long(), None)
        assert tally.totals().tolist() == [len(sampler)] * 3


def statistics(_: None) -> tuple[list[Tensor], list[Tensor]]:
    """BatchNorm's statistics on this rank, after an epoch's last batch and when the validation after it is measured."""
    as_torchrun()
    seen: dict[str, list[Tensor]] = {}

    class Notes(pl.Callback):
        def note(self, when: str, module: pl.LightningModule) -> None:
            seen[when] = [buffer.clone() for name, buffer in module.named_buffers() if "running" in name]

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            self.note("trained", pl_module)

        def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.note("validates", pl_module)

    method = METHODS["simclr"].build()
    tiny.trainer([Notes()], strategy="ddp", devices=2, max_epochs=1).fit(method, tiny.data(batch_size=8))
    return seen["trained"], seen["validates"]


def test_validation_sees_the_first_ranks_statistics_as_checkpoints_do(two_ranks: Ranks) -> None:
    (first, first_validates), (second, second_validates) = two_ranks(statistics, None)
    assert not all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    for expected, *found in zip(first, first_validates, second_validates, strict=True):
        assert all(torch.equal(expected, one) for one in found)
