"""DeepCluster: pseudo-labels that are made anew each epoch, weighted by their clusters, and kept in checkpoints."""

import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive.clustering import kmeans, whitened
from contrastive.module import Batch
from tests import tiny
from tests.methods import deepcluster
from tests.ranks import Ranks


class Record(pl.Callback):
    """Keeps each epoch's pseudo-labels and first classifier, and the state that clustering must leave alone."""

    def __init__(self) -> None:
        self.assignments: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.remembered: list[int] = []
        self.random: list[Tensor] = []
        self.training: list[bool] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.random.append(torch.get_rng_state())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.assignments.append(pl_module.assignments.clone())
            self.weights.append(pl_module.classifier.weight.detach().clone())
            self.remembered.append(len(trainer.optimizers[0].state))
            self.random.append(torch.get_rng_state())
            self.training.append(pl_module.encoder.training)


def fitted(epochs: int = 3, **options: Any) -> tuple[Any, Record]:
    pl.seed_everything(0, verbose=False)
    method, record = deepcluster.build(**options), Record()
    tiny.trainer([record], max_epochs=epochs).fit(method, tiny.data())
    return method, record


def test_each_epoch_has_clusters_and_a_classifier_of_its_own() -> None:
    method, record = fitted()
    for assignments in record.assignments:
        assert len(assignments) == 64
        assert assignments.unique().tolist() == [0, 1, 2, 3, 4]
    for one, other in zip(record.assignments, record.assignments[1:], strict=False):
        assert not one.equal(other)
    for one, other in zip(record.weights, record.weights[1:], strict=False):
        assert not one.equal(other)
    assert torch.stack(record.weights).std() == pytest.approx(0.01, rel=0.2)
    everything = len(list(method.parameters()))
    assert record.remembered == [0, everything - 2, everything - 2]  # not the classifier's weight and bias


def test_the_clusters_are_those_of_all_unaugmented_images_by_the_encoder_as_it_stands() -> None:
    method, record = deepcluster.build(), Record()
    with torch.no_grad():
        features = method.eval()(tiny.images(64))
    method.train()
    tiny.trainer([record], max_epochs=1).fit(method, tiny.data())
    inertia = kmeans(whitened(features, 256), 5, iterations=20, restarts=20).inertia
    mine = record.assignments[0]
    rows = whitened(features, 256)
    means = torch.stack([rows[mine == cluster].mean(0) for cluster in range(5)])
    assert float((rows - means[mine]).square().sum()) < 1.1 * inertia


def test_clustering_leaves_the_random_state_and_the_modes_as_they_were() -> None:
    _, record = fitted(epochs=1)
    before, after = record.random
    assert before.equal(after)
    assert record.training == [True]


def test_each_image_weighs_as_the_inverse_of_its_cluster() -> None:
    method, images = deepcluster.build(tiny.DenseEncoder()), tiny.images(16)
    batch, views = tiny.batch_of(images), tiny.views_of(method, images)
    method.assignments = torch.tensor([0] * 10 + [2] * 5 + [4])  # 1 and 3 are empty
    total, sizes = torch.zeros(()), {0: 10, 2: 5, 4: 1}
    for view in views:
        for image, label in zip(view, method.assignments.tolist(), strict=True):
            logits = method.classifier(method.encoder(image[None]))
            total = total + F.cross_entropy(logits[0], torch.tensor(label)) * 16 / (3 * sizes[label])
    torch.testing.assert_close(method.step(views, batch).loss, total / 32)
    _, weights = method.pseudo_labels(batch)
    assert float(weights.mean()) == pytest.approx(1)


def test_images_that_were_not_clustered_have_no_weight_in_the_sizes_and_no_label() -> None:
    method = deepcluster.build()
    method.assignments = torch.tensor([1, -1, 1, 0])
    labels, weights = method.pseudo_labels({"image": tiny.images(2), "index": torch.tensor([3, 0])})
    assert labels.tolist() == [0, 1]
    torch.testing.assert_close(weights, torch.tensor([3 / 2, 3 / 4]))
    for index in (1, 4, 2**40):
        batch: Batch = {"image": tiny.images(2), "index": torch.tensor([0, index])}
        with pytest.raises(ValueError, match=rf"^The image of index {index} has no pseudo-label: it was not"):
            method.pseudo_labels(batch)


def test_a_step_before_any_clustering_says_what_to_do() -> None:
    method = deepcluster.build()
    method.assignments = None
    with pytest.raises(RuntimeError, match=r"no pseudo-labels before the first epoch.*Train it by Trainer\.fit, or"):
        tiny.step_of(method, tiny.images(4))


class Bankless(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return tiny.data().train_dataloader()

    def val_dataloader(self) -> Any:
        return tiny.data().val_dataloader()


def test_a_trainer_without_a_bank_of_images_is_explained() -> None:
    data = Bankless()
    with pytest.raises(TypeError, match=r"has a Bankless, which has no bank_dataloader\(\)\. Fit with a data module"):
        tiny.trainer(max_epochs=1).fit(deepcluster.build(), data)
    with pytest.raises(
        TypeError, match=r"^DeepCluster needs the training images, .* has no data module\. Fit with a data module of"
    ):
        tiny.trainer(max_epochs=1).fit(deepcluster.build(), data.train_dataloader(), data.val_dataloader())


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^64 rows cannot make 65 clusters\."):
        tiny.trainer(max_epochs=1).fit(deepcluster.build(num_clusters=65), tiny.data())


def test_an_encoder_that_has_collapsed_is_explained() -> None:
    method = deepcluster.build()
    nn.init.zeros_(method.encoder[0].weight)
    nn.init.zeros_(method.encoder[0].bias)
    with pytest.raises(ValueError, match=r"^All 64 features are the same, so they cannot be clustered: the encoder"):
        tiny.trainer(max_epochs=1).fit(method, tiny.data())


def test_a_checkpoint_keeps_the_pseudo_labels_beside_the_state_dict(tmp_path: Path) -> None:
    method, record = deepcluster.build(), Record()
    trainer = tiny.trainer([record], max_epochs=1)
    trainer.fit(method, tiny.data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"encoder.{name}" for name in method.encoder.state_dict()} | {
        "classifier.weight",
        "classifier.bias",
    }
    fresh = deepcluster.build()
    fresh.on_load_checkpoint(checkpoint)
    assert fresh.assignments.equal(record.assignments[0])


def of_a_rank(batch_norm: bool) -> list[Tensor]:
    os.environ |= {  # what torchrun sets
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(dist.get_rank()),
        "LOCAL_RANK": str(dist.get_rank()),
        "WORLD_SIZE": str(dist.get_world_size()),
        "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    pl.seed_everything(0, verbose=False)
    method, record = deepcluster.build(None if batch_norm else tiny.DenseEncoder()), Record()
    settings = {"strategy": "ddp", "devices": dist.get_world_size()}
    tiny.trainer([record], max_epochs=3, **settings).fit(method, tiny.data(63, batch_size=8))
    return [*record.assignments, *record.weights]


@pytest.mark.parametrize("batch_norm", [True, False], ids=["BatchNorm", "LayerNorm"])
def test_two_ranks_have_the_same_pseudo_labels_and_classifiers(two_ranks: Ranks, batch_norm: bool) -> None:
    first, second = two_ranks(of_a_rank, batch_norm)
    assert len(first) == len(second) == 6
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
    assert len(first[0]) == 63
    assert (first[0] >= 0).all()
