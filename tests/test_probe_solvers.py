"""The linear probe's solvers on the bank, where the steps return the features."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.utils.data import DataLoader

from contrastive.callbacks import KNNProbe, LinearProbe
from contrastive.callbacks.classifiers import fit_lda, fit_logistic
from contrastive.evaluation import Features, extract_features, linear_evaluation
from tests.watched import NUM_CLASSES, Anybodys, PictureData, Pictures, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Found 1 module.s. in eval mode",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)
L2 = (1e-3, 1e-2, 1e-1)


def features_of(module: Anybodys, loader: Any) -> Features:
    with torch.no_grad():
        return extract_features(module.eval(), loader, device="cpu")


def fitted(probe: pl.Callback, data: pl.LightningDataModule, **settings: Any) -> tuple[dict[str, float], Anybodys]:
    pl.seed_everything(0, verbose=False)
    module, trainer = Anybodys(), quiet([probe], **settings)
    trainer.fit(module, data)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, module


def test_lda_is_scikit_learns_and_never_logged_as_linear() -> None:
    data = PictureData(train=60, val=(41,))
    metrics, module = fitted(LinearProbe(solver="lda"), data)
    train, test = (features_of(module, loader) for loader in (data.bank_dataloader(), data.val_dataloader()))
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(train.features.double().numpy(), train.labels)
    ranked = np.argsort(model.decision_function(test.features.double().numpy()), axis=1)
    for k in (1, 5):
        right = (ranked[:, -k:] == data.val[0].labels.numpy()[:, None]).any(1).mean()
        assert metrics[f"lda/top{k}"] == pytest.approx(float(right))
    assert not [key for key in metrics if "linear" in key]


def test_logistic_regression_is_linear_evaluation_under_its_name() -> None:
    data = PictureData(train=60, val=(41,))
    metrics, module = fitted(LinearProbe(solver="logistic", l2=L2), data)
    train, test = (features_of(module, loader) for loader in (data.bank_dataloader(), data.val_dataloader()))
    expected = linear_evaluation(train, test, l2=L2)
    assert metrics == {
        "linear_evaluation/top1": pytest.approx(expected.top1),
        "linear_evaluation/top5": pytest.approx(expected.top5),
        "linear_evaluation/l2": pytest.approx(expected.l2),
        "linear_evaluation/l2_at_edge": float(expected.l2_at_edge),
    }


def test_a_strength_at_the_grids_edge_is_logged_as_such() -> None:
    for l2, at_edge in (([1e-3, 10.0, 100.0], 1), ([1e-3], 0)):
        metrics, _ = fitted(LinearProbe(solver="logistic", l2=l2), PictureData(train=60))
        assert metrics["linear_evaluation/l2"] == pytest.approx(1e-3)
        assert metrics["linear_evaluation/l2_at_edge"] == at_edge


@pytest.mark.parametrize("solver", ["lda", "logistic"])
def test_the_bank_may_be_any_loader_and_the_number_of_classes_the_labels(solver: Any) -> None:
    data, bank = PictureData(val=(21, 9)), Pictures(40, seed=5)
    probe = LinearProbe(solver=solver, l2=L2, bank=DataLoader(bank, batch_size=7, shuffle=True), name="mine")
    pl.seed_everything(0, verbose=False)
    module, trainer = Anybodys(), quiet([probe])
    trainer.fit(module, data.train_dataloader(), data.val_dataloader())
    features = features_of(module, DataLoader(bank, batch_size=40))
    classifier = fit_lda(features, NUM_CLASSES) if solver == "lda" else fit_logistic(features, NUM_CLASSES, probe.l2)
    for number, test in enumerate(data.val):
        with torch.no_grad():
            right = classifier.logits(module(test.images)).argmax(1) == test.labels
        assert float(trainer.callback_metrics[f"mine/top1/{number}"]) == pytest.approx(float(right.float().mean()))
        assert f"mine/top5/{number}" in trainer.callback_metrics  # 6 classes, by the largest label


class Counted(PictureData):
    def __init__(self) -> None:
        super().__init__()
        self.banks: list[int] = []

    def bank_dataloader(self) -> Any:
        if self.trainer is not None and self.trainer.validating:
            self.banks.append(self.trainer.current_epoch)
        return super().bank_dataloader()


@pytest.mark.parametrize("solver", ["lda", "logistic"])
def test_every_nth_epoch_and_the_last_are_measured_and_no_sanity_check(solver: Any) -> None:
    data = Counted()
    probe = LinearProbe(solver=solver, every_n_epochs=2, l2=[1e-2])
    quiet([probe], max_epochs=5, num_sanity_val_steps=1).fit(Anybodys(), data)
    assert data.banks == [1, 3, 4]


@pytest.mark.parametrize("solver", ["lda", "logistic"])
def test_a_checkpoint_is_validated_with_the_accuracy_it_was_saved_with(solver: Any, tmp_path: Path) -> None:
    trainer = quiet([LinearProbe(solver=solver, l2=L2)])
    trainer.fit(Anybodys(), PictureData())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fresh = quiet([LinearProbe(solver=solver, l2=L2)])
    (scores,) = fresh.validate(Anybodys(), PictureData(), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert scores == {key: float(value) for key, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("solver", ["lda", "logistic"])
def test_a_diverged_encoder_is_skipped_with_a_warning(solver: Any) -> None:
    class Diverged(Anybodys):
        def forward(self, images: Tensor) -> Tensor:
            features = super().forward(images)
            return features if self.training else features * torch.nan

    trainer, probe = quiet([LinearProbe(solver=solver)], max_epochs=1), re.escape(LinearProbe(solver=solver).name)
    with pytest.warns(UserWarning, match=f"{probe} was not measured in epoch 0: features are not finite"):
        trainer.fit(Diverged(), PictureData())
    assert not trainer.callback_metrics


@pytest.mark.parametrize("solver", ["lda", "logistic"])
def test_a_bank_without_labels_is_refused(solver: Any) -> None:
    with pytest.raises(ValueError, match=r"None of the 48 images has a label|No training image has a label"):
        quiet([LinearProbe(solver=solver)]).fit(Anybodys(), PictureData(labelled=False))


def test_without_a_bank_it_is_said_where_to_get_one_before_training() -> None:
    data = PictureData()
    with pytest.raises(
        TypeError, match=r"LinearProbe needs the training images, .* no data module.*LinearProbe\(bank="
    ):
        quiet([LinearProbe(solver="lda")]).fit(Anybodys(), data.train_dataloader(), data.val_dataloader())


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "svm"}, r"solver = 'svm' is none of 'sgd', 'lda', 'logistic'\."),
        ({"num_classes": 3, "bank": []}, r"LinearProbe\(solver='sgd'\) has no use for bank=\."),
        ({"solver": "lda", "data": PictureData()}, r"LinearProbe\(solver='lda'\) has no use for data=\."),
    ],
)
def test_options_of_another_solver_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearProbe(**options)


def test_all_solvers_and_neighbours_stand_side_by_side(tmp_path: Path) -> None:
    probes = [LinearProbe(NUM_CLASSES), LinearProbe(solver="lda"), LinearProbe(solver="logistic", l2=L2), KNNProbe(k=3)]
    trainer = quiet(probes)
    trainer.fit(Anybodys(), PictureData())
    expected = {"linear_probe/top1", "lda/top1", "linear_evaluation/top1", "knn/top1"}
    assert expected <= trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    saved = torch.load(tmp_path / "all.ckpt", weights_only=True)["callbacks"]
    assert set(saved) == {"LinearProbe[linear_probe]"}  # what is fitted anew has no state
