"""Every callback leaves the run as it is, and says what is missing where it cannot work."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from contrastive.callbacks import KNNProbe, LinearProbe, RepresentationMonitor
from contrastive.callbacks.tally import Tally
from contrastive.module import ContrastiveModule
from tests import tiny
from tests.methods import METHODS
from tests.watched import NUM_CLASSES, Anybodys, PictureData, Pictures, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Found 1 module.s. in eval mode",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)
CALLBACKS: dict[str, Callable[[], pl.Callback]] = {
    "linear probe": lambda: LinearProbe(NUM_CLASSES),
    "linear probe with data": lambda: LinearProbe(NUM_CLASSES, data=PictureData(train=30, seed=7)),
    "linear probe of data alone": lambda: LinearProbe(data=PictureData(train=30, seed=7)),
    "linear probe by lda": lambda: LinearProbe(solver="lda"),
    "linear probe by logistic regression": lambda: LinearProbe(solver="logistic", l2=[1e-2]),
    "linear probe of a layer": lambda: LinearProbe(NUM_CLASSES, layer="encoder"),
    "linear probe of a layer by lda": lambda: LinearProbe(solver="lda", layer="encoder"),
    "knn probe": lambda: KNNProbe(k=3),
    "knn probe with a bank": lambda: KNNProbe(k=3, bank=DataLoader(Pictures(20), batch_size=7, shuffle=True)),
    "knn probe of a layer": lambda: KNNProbe(k=3, layer="encoder"),
    "representation monitor of a layer": lambda: RepresentationMonitor(every_n_steps=2, layer="encoder"),
    "representation monitor": lambda: RepresentationMonitor(every_n_steps=2),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bf16-mixed"},
    "gradient accumulation": {"accumulate_grad_batches": 4},  # does not divide the 6 batches of an epoch
    "no validation": {"limit_val_batches": 0},
    "sanity check and validation inside the epoch": {"num_sanity_val_steps": 2, "val_check_interval": 0.5},
}
every_callback = pytest.mark.parametrize("build", CALLBACKS.values(), ids=CALLBACKS)


def run(
    module: pl.LightningModule, data: pl.LightningDataModule, callbacks: list[pl.Callback], **settings: Any
) -> dict[str, Any]:
    """Train, and return all that a callback must not have changed."""
    pl.seed_everything(3, verbose=False)
    trainer = quiet(callbacks, **settings)
    trainer.fit(module, data)
    return {
        "weights and buffers": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": [p.grad for p in module.parameters()],
        "optimizer": [value for state in trainer.optimizers[0].state.values() for value in state.values()],
        "names": [name for name, _ in module.named_modules()],
        "modes": getattr(module, "modes", None),
        "random state": [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64))],
        "python random state": random.getstate(),
        "global step": trainer.global_step,
        "hyper-parameters": dict(module.hparams),
    }


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.equal(other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


@pytest.mark.usefixtures("without_type_checks")  # beartype draws from Python's random state
@every_callback
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_is_bit_identical_with_and_without(build: Callable[[], pl.Callback], settings: dict[str, Any]) -> None:
    without = run(Anybodys(), PictureData(), [], **settings)
    assert_equal(run(Anybodys(), PictureData(), [build()], **settings), without)


@pytest.mark.usefixtures("without_type_checks")
@every_callback
def test_training_with_two_validation_loaders_is_bit_identical(build: Callable[[], pl.Callback]) -> None:
    without = run(Anybodys(), PictureData(val=(21, 9)), [])
    assert_equal(run(Anybodys(), PictureData(val=(21, 9)), [build()]), without)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_bit_identically_with_all_callbacks(name: str) -> None:
    def method() -> ContrastiveModule:
        torch.manual_seed(0)
        return METHODS[name].build()

    without = run(method(), tiny.data(), [])
    callbacks = [
        LinearProbe(4, data=tiny.data(count=40)),
        LinearProbe(solver="lda"),
        KNNProbe(k=3),
        RepresentationMonitor(),
        RepresentationMonitor(layer="encoder"),
    ]
    trainer_settings = {"accumulate_grad_batches": 2}
    assert_equal(run(method(), tiny.data(), callbacks), without)
    assert_equal(
        run(method(), tiny.data(), [LinearProbe(4), KNNProbe(k=3), RepresentationMonitor()], **trainer_settings),
        run(method(), tiny.data(), [], **trainer_settings),
    )


def test_the_watched_module_notices_a_callback_that_draws_a_number() -> None:
    class Careless(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            torch.rand(1)

    without = run(Anybodys(), PictureData(), [])
    with pytest.raises(AssertionError):
        assert_equal(run(Anybodys(), PictureData(), [Careless()]), without)


def test_an_index_that_stayed_on_the_host_is_counted_with_hits_on_a_device() -> None:
    elsewhere = torch.device("meta")  # holds no numbers, but refuses to be mixed with other devices
    tally = Tally([], elsewhere)
    tally.add(torch.ones(3, 2, device=elsewhere).long(), torch.zeros(3, device=elsewhere).long(), torch.arange(3))
    assert tally._rows[-1].device == elsewhere


# What is missing


def fit_with(callback: pl.Callback, module: pl.LightningModule, data: pl.LightningDataModule) -> None:
    quiet([callback]).fit(module, data)


@pytest.mark.parametrize(
    ("callback", "hook"), [(LinearProbe(NUM_CLASSES), "training_step"), (KNNProbe(k=3), "validation_step")]
)
def test_missing_labels_are_named_with_what_was_returned(callback: pl.Callback, hook: str) -> None:
    with pytest.raises(
        TypeError,
        match=rf"reads 'features' and 'labels' from Anybodys\.{hook}, which returned .*'features', 'index'.*"
        r"train on a labelled data set, or remove",
    ):
        fit_with(callback, Anybodys(hidden=frozenset({"labels"})), PictureData())


@pytest.mark.parametrize("callback", [LinearProbe(NUM_CLASSES), RepresentationMonitor()], ids=["linear", "monitor"])
def test_a_training_step_without_features_is_told_what_to_return(callback: pl.Callback) -> None:
    with pytest.raises(TypeError, match=r"training_step, which returned 'loss'\. Return a mapping with 'features'"):
        fit_with(callback, Anybodys(hidden=frozenset({"features", "labels", "index"})), PictureData())


class ReturnsNothing(Anybodys):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        return None


@pytest.mark.parametrize("callback", [LinearProbe(NUM_CLASSES), KNNProbe(k=3)], ids=["linear", "knn"])
def test_a_validation_step_that_returns_nothing_is_told_what_to_return(callback: pl.Callback) -> None:
    with pytest.raises(TypeError, match=r"ReturnsNothing\.validation_step, which returned nothing\. Return a mapping"):
        fit_with(callback, ReturnsNothing(), PictureData())


class NoValidation(PictureData):
    def val_dataloader(self) -> Any:
        return []


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
@pytest.mark.parametrize("callback", [LinearProbe(NUM_CLASSES), KNNProbe(k=3)], ids=["linear", "knn"])
def test_a_missing_validation_loader_is_named(callback: pl.Callback) -> None:
    with pytest.raises(TypeError, match=r"there is no validation loader.*limit_val_batches=0"):
        fit_with(callback, Anybodys(), NoValidation())


@pytest.mark.parametrize("callback", [LinearProbe(NUM_CLASSES), KNNProbe(k=3)], ids=["linear", "knn"])
def test_validation_may_be_switched_off(callback: pl.Callback) -> None:
    trainer = quiet([callback], limit_val_batches=0)
    trainer.fit(Anybodys(), PictureData())
    assert "linear_probe/top1" not in trainer.callback_metrics
    assert ("linear_probe/train_top1" in trainer.callback_metrics) == isinstance(callback, LinearProbe)


class Shuffles(Anybodys):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        return outputs | {"labels": outputs["labels"][:-1]}


def test_labels_that_do_not_fit_the_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Shuffles\.validation_step returned 8 features and 7 labels"):
        fit_with(LinearProbe(NUM_CLASSES), Shuffles(), PictureData())


class Maps(Anybodys):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        return outputs | {"features": outputs["features"][:, :, None, None]}


@pytest.mark.parametrize("callback", [LinearProbe(NUM_CLASSES), RepresentationMonitor()], ids=["linear", "monitor"])
def test_feature_maps_are_refused(callback: pl.Callback) -> None:
    with pytest.raises(ValueError, match=r"features of shape \[16, 10, 1, 1\]\..*takes vectors, \[V\*B, D\]: pool"):
        fit_with(callback, Maps(), PictureData())


def test_knn_probe_without_a_bank_says_where_to_get_one() -> None:
    data = PictureData()
    with pytest.raises(TypeError, match=r"the trainer has no data module.*KNNProbe\(bank="):
        quiet([KNNProbe(k=3)]).fit(Anybodys(), data.train_dataloader(), data.val_dataloader())
    with pytest.raises(TypeError, match=r"the trainer has a Bankless, which has no bank_dataloader\(\)"):
        quiet([KNNProbe(k=3)]).fit(Anybodys(), Bankless())


class Bankless(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return PictureData().train_dataloader()

    def val_dataloader(self) -> Any:
        return PictureData().val_dataloader()


def test_transfer_data_without_a_bank_is_refused() -> None:
    with pytest.raises(TypeError, match="data=Bankless has no bank_dataloader"):
        LinearProbe(data=Bankless())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearProbe(), "LinearProbe needs num_classes, .* or data"),
        (lambda: LinearProbe(3, every_n_epochs=0), "every_n_epochs = 0 must be 1 or more"),
        (lambda: KNNProbe(every_n_epochs=0), "every_n_epochs = 0 must be 1 or more"),
        (lambda: KNNProbe(k=0), "k = 0 must be 1 or more"),
        (lambda: KNNProbe(temperature=0.0), r"temperature = 0\.0 greater than 0"),
        (lambda: RepresentationMonitor(every_n_steps=0), "every_n_steps = 0 must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build: Callable[[], pl.Callback], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


class Skips(Anybodys):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_batch_that_training_skips_is_skipped_here_too() -> None:
    trainer = quiet([LinearProbe(NUM_CLASSES), RepresentationMonitor(every_n_steps=1)])
    module = Skips()
    trainer.fit(module, PictureData())
    assert len(module.modes) == 10  # of 12 batches
    assert {"linear_probe/top1", "collapse/feature_std"} <= trainer.callback_metrics.keys()
