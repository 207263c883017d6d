"""The linear probe's numbers, against torch's own layers trained on the same features."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from contrastive.callbacks import LinearProbe
from contrastive.evaluation import extract_features, linear_evaluation
from tests.watched import NUM_CLASSES, WIDTH, Anybodys, PictureData, Seen, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Found 1 module.s. in eval mode",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:Checkpoint directory .* exists and is not empty",
)


def trained(probe: LinearProbe, data: PictureData, **settings: Any) -> tuple[pl.Trainer, Seen, Anybodys]:
    pl.seed_everything(0, verbose=False)
    seen, module = Seen(), Anybodys()
    trainer = quiet([probe, seen], **settings)
    trainer.fit(module, data)
    return trainer, seen, module


def reference(batches: list[dict[str, Tensor]], learning_rate: float) -> tuple[nn.Module, list[float]]:
    """A head trained by torch on the views of these batches, and its accuracy on each before learning from it."""
    head = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False), nn.Linear(WIDTH, NUM_CLASSES))
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(head.parameters(), lr=learning_rate, momentum=0.9)
    accuracies = []
    for batch in batches:
        labels = torch.cat([batch["labels"], batch["labels"]])  # two views, one after the other
        logits = head(batch["features"].float())
        accuracies.append(float((logits.argmax(1) == labels).float().mean()))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    return head.eval(), accuracies


def score(head: nn.Module, batches: list[dict[str, Tensor]], k: int) -> float:
    features, labels = (torch.cat([batch[key] for batch in batches]) for key in ("features", "labels"))
    return float((head(features).topk(k).indices == labels[:, None]).any(1).float().mean())


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}], ids=str)
def test_logged_accuracies_are_those_of_a_torch_head_on_the_same_features(settings: dict[str, Any]) -> None:
    trainer, seen, _ = trained(LinearProbe(NUM_CLASSES, learning_rates=[0.1]), PictureData(), **settings)
    head, accuracies = reference(seen.train, 0.1)
    assert len(seen.train) == 12
    metrics = trainer.callback_metrics
    val = [{key: value.float() if key == "features" else value for key, value in batch.items()} for batch in seen.val]
    assert float(metrics["linear_probe/top1"]) == pytest.approx(score(head, val, 1))
    assert float(metrics["linear_probe/top5"]) == pytest.approx(score(head, val, 5))
    assert float(metrics["linear_probe/train_top1"]) == pytest.approx(sum(accuracies[6:]) / 6)
    assert float(metrics["linear_probe/lr"]) == pytest.approx(0.1)


def test_the_head_that_did_best_on_training_batches_reports() -> None:
    rates = [1e-6, 0.1, 1e-5]
    trainer, seen, _ = trained(LinearProbe(NUM_CLASSES, learning_rates=rates), PictureData())
    judged = {}
    for rate in rates:
        judged[rate] = 0.0
        for accuracy in reference(seen.train, rate)[1]:
            judged[rate] = 0.99 * judged[rate] + 0.01 * accuracy
    best = max(judged, key=lambda rate: judged[rate])
    assert float(trainer.callback_metrics["linear_probe/lr"]) == pytest.approx(best)
    expected = score(reference(seen.train, best)[0], seen.val, 1)
    assert float(trainer.callback_metrics["linear_probe/top1"]) == pytest.approx(expected)


class WrongValidationLabels(Anybodys):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
        outputs = super().validation_step(batch, batch_idx)
        return outputs | {"labels": (outputs["labels"] + 1) % NUM_CLASSES}


def test_validation_labels_have_no_say_in_what_is_learned_and_chosen() -> None:
    right, wrong = LinearProbe(NUM_CLASSES), LinearProbe(NUM_CLASSES)
    for probe, module in ((right, Anybodys()), (wrong, WrongValidationLabels())):
        pl.seed_everything(0, verbose=False)
        quiet([probe]).fit(module, PictureData())
    assert all(value.equal(wrong.state_dict()[key]) for key, value in right.state_dict().items())


def test_five_classes_or_fewer_have_no_top5() -> None:
    class Three(Anybodys):
        def known(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"index": batch["index"], "labels": batch["label"] % 3}

    trainer = quiet([LinearProbe(3)])
    trainer.fit(Three(), PictureData())
    assert "linear_probe/top1" in trainer.callback_metrics
    assert "linear_probe/top5" not in trainer.callback_metrics


def test_several_validation_loaders_are_scored_one_by_one() -> None:
    trainer, seen, _ = trained(LinearProbe(NUM_CLASSES, learning_rates=[0.1]), PictureData(val=(21, 9)))
    head, _ = reference(seen.train, 0.1)
    metrics = trainer.callback_metrics
    assert float(metrics["linear_probe/top1/0"]) == pytest.approx(score(head, seen.val[:3], 1))
    assert float(metrics["linear_probe/top1/1"]) == pytest.approx(score(head, seen.val[3:], 1))
    assert "linear_probe/top1" not in metrics


class Named(PictureData):
    def val_dataloader(self) -> Any:
        first, second = super().val_dataloader()
        return {"clean": first, "noisy": second}


def test_validation_loaders_with_names_are_logged_by_name() -> None:
    trainer, _, _ = trained(LinearProbe(NUM_CLASSES), Named(val=(21, 9)))
    assert {"linear_probe/top1/clean", "linear_probe/top5/noisy"} <= trainer.callback_metrics.keys()


def test_unlabelled_validation_images_do_not_count() -> None:
    class Partly(Anybodys):
        def known(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"index": batch["index"], "labels": torch.where(batch["index"] % 3 == 0, -1, batch["label"])}

    pl.seed_everything(0, verbose=False)
    probe, seen = LinearProbe(NUM_CLASSES), Seen()
    trainer = quiet([probe, seen])
    trainer.fit(Partly(), PictureData())
    assert probe.heads is not None
    right = [probe.heads.logits(batch["features"]).argmax(1) == batch["labels"] for batch in seen.val]
    assert float(trainer.callback_metrics["linear_probe/top1"]) == pytest.approx(int(torch.cat(right).sum()) / 14)


def test_where_no_image_has_a_label_nothing_is_logged_and_a_warning_says_so() -> None:
    class Unlabelled(Anybodys):
        def known(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"labels": torch.full_like(batch["label"], -1)}

    trainer = quiet([LinearProbe(NUM_CLASSES)], max_epochs=1)
    with (
        pytest.warns(UserWarning, match="linear_probe scored nothing on validation loader 0"),
        pytest.warns(UserWarning, match="linear_probe learned nothing in epoch 0: no image has a label"),
    ):
        trainer.fit(Unlabelled(), PictureData())
    assert not [key for key in trainer.callback_metrics if key.startswith("linear_probe/t")]


# With Lightning's own callbacks


def test_checkpoints_and_early_stopping_can_follow_the_probe(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="linear_probe/top1", mode="max", save_top_k=-1, filename="{epoch}")
    stopping = EarlyStopping("linear_probe/top1", mode="max", patience=1, min_delta=1.0)
    trainer = quiet(
        [LinearProbe(NUM_CLASSES), checkpoint, stopping],
        max_epochs=6,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
    )
    trainer.fit(Anybodys(), PictureData())
    assert trainer.current_epoch == 2  # no epoch can be better by 1
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    assert checkpoint.best_model_score == max(checkpoint.best_k_models.values())


def test_a_resumed_run_has_the_probe_of_an_uninterrupted_one(tmp_path: Path) -> None:
    class FixedOrder(PictureData):
        def train_dataloader(self) -> Any:
            return self.bank_dataloader()

    class WithoutNoise(Anybodys):
        def __init__(self) -> None:
            super().__init__()
            self.encoder[4] = nn.Identity()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
            torch.manual_seed(1000 * self.current_epoch + batch_idx)
            return super().training_step(batch, batch_idx)

    straight, first, second = (LinearProbe(NUM_CLASSES) for _ in range(3))
    whole = quiet([straight], max_epochs=3)
    whole.fit(WithoutNoise(), FixedOrder())
    half = quiet([first], max_epochs=1)
    half.fit(WithoutNoise(), FixedOrder())
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest = quiet([second], max_epochs=3)
    rest.fit(WithoutNoise(), FixedOrder(), ckpt_path=tmp_path / "half.ckpt")
    assert straight.state_dict()["weights"].abs().sum() > 0
    assert all(value.equal(second.state_dict()[key]) for key, value in straight.state_dict().items())
    for key in ("top1", "top5", "train_top1", "lr"):
        assert whole.callback_metrics[f"linear_probe/{key}"] == rest.callback_metrics[f"linear_probe/{key}"]


def test_several_probes_keep_their_states_and_metrics_apart(tmp_path: Path) -> None:
    slow, fast = LinearProbe(NUM_CLASSES, learning_rates=[1e-4], name="slow"), LinearProbe(NUM_CLASSES, name="fast")
    trainer = quiet([slow, fast])
    trainer.fit(Anybodys(), PictureData())
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    assert {"slow/top1", "fast/top1"} <= trainer.callback_metrics.keys()
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert saved["LinearProbe[slow]"]["weights"].equal(slow.state_dict()["weights"])
    assert saved["LinearProbe[fast]"]["weights"].equal(fast.state_dict()["weights"])


def test_validating_a_checkpoint_gives_the_accuracy_it_was_saved_with(tmp_path: Path) -> None:
    trainer, _, _ = trained(LinearProbe(NUM_CLASSES), PictureData())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fresh = quiet([LinearProbe(NUM_CLASSES)])
    (scores,) = fresh.validate(Anybodys(), PictureData(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert scores["linear_probe/top1"] == float(trainer.callback_metrics["linear_probe/top1"])


def test_validating_without_a_trained_probe_says_so() -> None:
    with pytest.warns(UserWarning, match="LinearProbe scores nothing, being untrained"):
        quiet([LinearProbe(NUM_CLASSES)]).validate(Anybodys(), PictureData(), verbose=False)


def test_a_sanity_check_is_no_result() -> None:
    logged: list[set[str]] = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            logged.append(set(trainer.callback_metrics))

    trainer = quiet([LinearProbe(NUM_CLASSES, data=PictureData(seed=7)), Look()], num_sanity_val_steps=2, max_epochs=1)
    trainer.fit(Anybodys(), PictureData())
    assert logged == [set()]


# Transfer to another data set


def expected_transfer(module: Anybodys, data: PictureData) -> Any:
    with torch.no_grad():
        module.eval()
        train, test = (
            extract_features(module, loader, device="cpu") for loader in (data.bank_dataloader(), data.val_dataloader())
        )
    return linear_evaluation(train, test, num_classes=NUM_CLASSES, l2=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1))


def test_transfer_is_linear_evaluation_of_the_frozen_encoder_on_the_other_data() -> None:
    other = PictureData(train=60, val=(40,), seed=7)
    trainer, _, module = trained(LinearProbe(NUM_CLASSES, data=other), PictureData())
    expected = expected_transfer(module, other)
    metrics = trainer.callback_metrics
    assert float(metrics["linear_probe/transfer_top1"]) == pytest.approx(expected.top1)
    assert float(metrics["linear_probe/transfer_top5"]) == pytest.approx(expected.top5)
    assert float(metrics["linear_probe/transfer_l2"]) == pytest.approx(expected.l2)
    assert other.setups == ["prepare", "fit"]  # once, though two epochs measured it


def test_transfer_alone_needs_neither_labels_nor_validation_of_the_pretraining_data() -> None:
    other = PictureData(train=60, val=(40,), seed=7)
    trainer, _, module = trained(LinearProbe(data=other), PictureData(labelled=False), limit_val_batches=0)
    top1 = float(trainer.callback_metrics["linear_probe/transfer_top1"])
    assert top1 == pytest.approx(expected_transfer(module, other).top1)
    assert "linear_probe/train_top1" not in trainer.callback_metrics


@pytest.mark.parametrize("validation", [{}, {"limit_val_batches": 0}], ids=["validation", "none"])
def test_transfer_is_measured_in_every_nth_epoch_and_the_last(validation: dict[str, Any]) -> None:
    measured: list[int] = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.callback_metrics.pop("linear_probe/transfer_top1", None) is not None:
                measured.append(trainer.current_epoch)

    probe = LinearProbe(data=PictureData(seed=7), every_n_epochs=2)
    trainer = quiet([probe, Look()], max_epochs=5, **validation)
    trainer.fit(Anybodys(), PictureData())
    assert measured == [2, 4]  # epochs done by then
    assert "linear_probe/transfer_top1" in trainer.callback_metrics


def test_transfer_of_a_diverged_encoder_is_skipped_with_a_warning() -> None:
    class Diverged(Anybodys):
        def forward(self, images: Tensor) -> Tensor:
            features = super().forward(images)
            return features if self.training else features * torch.inf

    trainer = quiet([LinearProbe(data=PictureData(seed=7))], max_epochs=1)
    with pytest.warns(UserWarning, match="Transfer was not measured in epoch 0: features are not finite"):
        trainer.fit(Diverged(), PictureData())


def test_transfer_on_several_validation_loaders_is_refused() -> None:
    with pytest.raises(TypeError, match=r"one validation loader, but data\.val_dataloader\(\) has 2"):
        quiet([LinearProbe(data=PictureData(val=(5, 5)))]).fit(Anybodys(), PictureData())
