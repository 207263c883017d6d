"""The kNN probe's numbers, against neighbours counted one by one."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler

from contrastive.callbacks import KNNProbe
from tests.ranks import Ranks
from tests.watched import NUM_CLASSES, Anybodys, PictureData, Pictures, Seen, as_torchrun, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Found 1 module.s. in eval mode",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)


def accuracy_by_loops(module: Anybodys, bank: Pictures, test: Pictures, k: int, temperature: float) -> float:
    """Wu et al. 2018, section 3.4, with the module as it stands."""
    with torch.no_grad():
        module.eval()
        stored, queries = (torch.nn.functional.normalize(module(part.images).double(), dim=1) for part in (bank, test))
    right = 0
    for query, label in zip(queries, test.labels.tolist(), strict=True):
        similarities = [(float(row @ query), int(other)) for row, other in zip(stored, bank.labels, strict=True)]
        votes = [0.0] * NUM_CLASSES
        for similarity, other in sorted(similarities, reverse=True)[:k]:
            votes[other] += math.exp(similarity / temperature)
        right += votes.index(max(votes)) == label
    return right / len(test)


@pytest.mark.parametrize(("k", "temperature"), [(5, 0.07), (40, 0.5)])
def test_logged_accuracy_is_that_of_the_definition_on_the_unaugmented_training_images(
    k: int, temperature: float
) -> None:
    data, module = PictureData(), Anybodys()
    trainer = quiet([KNNProbe(k=k, temperature=temperature)])
    trainer.fit(module, data)
    expected = accuracy_by_loops(module, data.train, data.val[0], k, temperature)
    assert float(trainer.callback_metrics["knn/top1"]) == pytest.approx(expected)
    assert float(trainer.callback_metrics["knn/top5"]) >= expected


def test_a_bank_of_ones_own_may_be_any_loader() -> None:
    data, module, bank = PictureData(val=(21, 9)), Anybodys(), Pictures(30, seed=5)
    loader = DataLoader(bank, batch_size=7, shuffle=True)
    trainer = quiet([KNNProbe(k=5, bank=loader)])
    trainer.fit(module, data.train_dataloader(), data.val_dataloader())
    for number, test in enumerate(data.val):
        expected = accuracy_by_loops(module, bank, test, 5, 0.07)
        assert float(trainer.callback_metrics[f"knn/top1/{number}"]) == pytest.approx(expected)


def test_trainer_validate_measures_too() -> None:
    data, module = PictureData(), Anybodys()
    (scores,) = quiet([KNNProbe(k=5, every_n_epochs=100)]).validate(module, data, verbose=False)
    assert scores["knn/top1"] == pytest.approx(accuracy_by_loops(module, data.train, data.val[0], 5, 0.07))


def test_every_nth_epoch_and_the_last_are_measured() -> None:
    banks: list[int] = []

    class Counted(PictureData):
        def bank_dataloader(self) -> Any:
            if self.trainer is not None and self.trainer.validating:
                banks.append(self.trainer.current_epoch)
            return super().bank_dataloader()

    quiet([KNNProbe(k=3, every_n_epochs=2)], max_epochs=5, num_sanity_val_steps=1).fit(Anybodys(), Counted())
    assert banks == [1, 3, 4]


def test_the_setting_is_logged_beside_the_modules_hyper_parameters(tmp_path: Path) -> None:
    class Configured(Anybodys):
        def __init__(self, depth: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    module, logger = Configured(), CSVLogger(tmp_path)
    quiet([KNNProbe(k=7, temperature=0.2)], logger=logger).fit(module, PictureData())
    text = (Path(logger.log_dir) / "hparams.yaml").read_text()
    assert {"depth: 3", "knn/k: 7", "knn/temperature: 0.2"} == set(text.split("\n")) - {""}
    assert dict(module.hparams) == {"depth": 3}


def test_checkpoints_can_follow_the_probe(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="knn/top1", mode="max")
    trainer = quiet([KNNProbe(k=3), checkpoint], enable_checkpointing=True)
    trainer.fit(Anybodys(), PictureData())
    assert checkpoint.best_model_score is not None


def test_more_neighbours_than_images_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="k = 49 neighbours of a bank of 48 labelled images"):
        quiet([KNNProbe(k=49)]).fit(Anybodys(), PictureData())


def test_a_bank_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="None of the 48 images has a label"):
        quiet([KNNProbe(k=5)]).fit(Anybodys(), PictureData(labelled=False))


def test_a_diverged_encoder_is_skipped_with_a_warning() -> None:
    class Diverged(Anybodys):
        def forward(self, images: Tensor) -> Tensor:
            features = super().forward(images)
            return features if self.training else features * torch.nan

    trainer = quiet([KNNProbe(k=3), Seen()], max_epochs=1)
    with pytest.warns(UserWarning, match="knn was not measured in epoch 0: features are not finite"):
        trainer.fit(Diverged(), PictureData())
    assert "knn/top1" not in trainer.callback_metrics


def test_the_bank_is_encoded_in_the_runs_precision() -> None:
    dtypes: list[torch.dtype] = []

    class Watches(Anybodys):
        def forward(self, images: Tensor) -> Tensor:
            features = super().forward(images)
            if not self.training:
                dtypes.append(features.dtype)
            return features

    pl.seed_everything(0, verbose=False)
    quiet([KNNProbe(k=3)], precision="bf16-mixed", max_epochs=1).fit(Watches(), PictureData())
    assert set(dtypes) == {torch.bfloat16}


# Several ranks

NUM_BANK, NUM_VAL = 47, (21, 2)


def numbers_of_rank(count: int) -> range:
    """Of very different lengths: ranks have different numbers of batches, and of two images the first rank has none."""
    last = count - (dist.get_world_size() - 2)
    bounds = [0, max(0, last - 19), last, count]
    return range(*bounds[dist.get_rank() : dist.get_rank() + 2])


def bank_on_this_rank(kind: str) -> DataLoader[Any]:
    pictures = Pictures(NUM_BANK)
    if kind == "whole":
        return DataLoader(pictures, batch_size=8, shuffle=True)
    if kind == "padded":
        return DataLoader(pictures, batch_size=8, sampler=DistributedSampler(pictures, shuffle=False))
    return DataLoader(Subset(pictures, numbers_of_rank(NUM_BANK)), batch_size=8)


def scores_on_ranks(kind: str) -> tuple[dict[str, float], list[int]]:
    as_torchrun()
    held: list[int] = []

    class Watched(KNNProbe):
        def classifier(self, trainer: pl.Trainer, module: pl.LightningModule) -> Any:
            found = super().classifier(trainer, module)
            assert found is not None
            held.append(len(found.logits.func.__self__.features))
            return found

    trainer = quiet(
        [Watched(k=30, bank=bank_on_this_rank(kind))],
        strategy="ddp",
        devices=dist.get_world_size(),
        use_distributed_sampler=False,
    )
    loaders = [
        DataLoader(Subset(pictures, numbers_of_rank(len(pictures))), batch_size=8)
        for pictures in PictureData(val=NUM_VAL).val
    ]
    module = Anybodys()
    module.allow_zero_length_dataloader_with_multiple_devices = True
    trainer.validate(module, loaders, verbose=False)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}, held


@pytest.mark.parametrize("kind", ["whole", "padded", "sharded"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_bank_and_score_as_one_process_does(
    request: pytest.FixtureRequest, world_size: int, kind: str
) -> None:
    ranks: Ranks = request.getfixturevalue({2: "two_ranks", 3: "three_ranks"}[world_size])
    trainer = quiet([KNNProbe(k=30, bank=DataLoader(Pictures(NUM_BANK), batch_size=8))])
    trainer.validate(Anybodys(), PictureData(val=NUM_VAL), verbose=False)
    expected = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert 0 < expected["knn/top1/0"] < 1
    answers = ranks(scores_on_ranks, kind)
    for scores, _ in answers:
        assert scores == expected
    held = [count for _, (count,) in answers]
    assert sum(held) == NUM_BANK
    if kind != "sharded":
        assert max(held) <= NUM_BANK // world_size + 1
