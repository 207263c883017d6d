"""Probes by a forward hook, on a LightningModule written by somebody who never heard of this package."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from contrastive.callbacks import KNNProbe, LinearProbe, RepresentationMonitor
from contrastive.callbacks.batches import images_of, index_of, labels_of, num_images_in
from contrastive.callbacks.layer import Layer, vectors
from contrastive.evaluation import stratified_split
from tests.ranks import Ranks
from tests.test_callbacks import assert_equal, run
from tests.test_callbacks_monitor import by_definition
from tests.test_probe_linear import reference, score
from tests.watched import NUM_CLASSES, Backbone, PairData, Pictures, Somebodys, as_torchrun, quiet

pytestmark = pytest.mark.filterwarnings(
    "ignore:Found 1 module.s. in eval mode",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)
LAYER = "backbone.avgpool"
L2 = (1e-3, 1e-2, 1e-1)


def probes(data: PairData) -> list[pl.Callback]:
    return [
        LinearProbe(NUM_CLASSES, learning_rates=[0.1], layer=LAYER),
        LinearProbe(solver="lda", bank=data.bank(), layer=LAYER),
        LinearProbe(solver="logistic", l2=L2, bank=data.bank(), layer=LAYER),
        KNNProbe(k=5, bank=data.bank(), layer=LAYER),
        RepresentationMonitor(every_n_steps=4, layer=LAYER),
    ]


def pooled(state: dict[str, Tensor], pictures: Pictures, norm: type[nn.Module]) -> np.ndarray[Any, Any]:
    """Features in float64, image by image through a plain copy of the backbone."""
    module = Somebodys(norm)
    module.load_state_dict(state)
    backbone = module.eval().double().backbone
    with torch.no_grad():
        return torch.cat([backbone.pooled(image[None].double() / 128 - 1) for image in pictures.images]).numpy()


def accuracies_by_others(state: dict[str, Tensor], data: PairData, norm: type[nn.Module]) -> dict[str, float]:
    """Of scikit-learn's classifiers in float64, and of neighbours counted one by one."""
    train, test = (pooled(state, pictures, norm) for pictures in (data.train, data.val))
    labels, test_labels = data.train.labels.numpy(), data.val.labels.numpy()
    found = {}

    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    found["lda/top1"] = lda.score(test, test_labels)

    train_scaled, test_scaled = ((x - train.mean(0)) / (train - train.mean(0)).std() for x in (train, test))
    held_out = stratified_split(data.train.labels, 0.1, seed=0).numpy()

    def logistic(l2: float, rows: np.ndarray[Any, Any]) -> LogisticRegression:
        model = LogisticRegression(C=1 / (l2 * rows.sum()), tol=1e-10, max_iter=100_000)
        return model.fit(train_scaled[rows], labels[rows])

    judged = [(logistic(l2, ~held_out).score(train_scaled[held_out], labels[held_out]), l2) for l2 in L2]
    found["linear_evaluation/l2"] = max(judged)[1]
    found["linear_evaluation/l2_at_edge"] = float(max(judged)[1] != 1e-2)
    final = logistic(max(judged)[1], np.ones(len(labels), dtype=bool))
    found["linear_evaluation/top1"] = final.score(test_scaled, test_labels)

    unit, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    right = 0
    for query, label in zip(queries, test_labels.tolist(), strict=True):
        votes = [0.0] * NUM_CLASSES
        for similarity, other in sorted(zip((unit @ query).tolist(), labels.tolist(), strict=True))[-5:]:
            votes[other] += math.exp(similarity / 0.07)
        right += votes.index(max(votes)) == label
    found["knn/top1"] = right / len(test)
    return found


class Remembers(Backbone):
    """Keeps what its pool returned, call by call, without a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.training_calls: list[Tensor] = []
        self.other_calls: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer1(self.relu(self.bn1(self.conv1(images))))
        vectors = torch.flatten(self.avgpool(maps), 1)
        (self.training_calls if self.training else self.other_calls).append(vectors.detach().clone())
        logits: Tensor = self.fc(vectors)
        return logits


class Labels(pl.Callback):
    """Keeps the labels of the training batches."""

    def __init__(self) -> None:
        self.train: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(batch[1])


def fitted(callbacks: list[pl.Callback], module: pl.LightningModule, data: PairData, **settings: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = quiet(callbacks, **settings)
    trainer.fit(module, data)
    return trainer


def test_accuracies_are_those_of_scikit_learn_and_loops_on_the_layers_outputs() -> None:
    data, module = PairData(train=60, val=41), Somebodys()
    metrics = fitted(probes(data), module, data).callback_metrics
    expected = accuracies_by_others(module.state_dict(), data, nn.BatchNorm2d)
    assert {key: float(metrics[key]) for key in expected} == pytest.approx(expected)
    assert 0.3 < expected["lda/top1"] < 1
    assert "lda/l2" not in metrics


def test_heads_learn_from_both_calls_of_the_layer_and_not_from_the_momentum_encoder() -> None:
    data, module, labels = PairData(), Somebodys(), Labels()
    module.backbone = Remembers()
    probe = LinearProbe(NUM_CLASSES, learning_rates=[0.1], layer=LAYER)
    metrics = fitted([probe, labels], module, data).callback_metrics
    calls = module.backbone.training_calls
    pairs = zip(calls[::2], calls[1::2], labels.train, strict=True)
    head, accuracies = reference([{"features": torch.cat([a, b]), "labels": own} for a, b, own in pairs], 0.1)
    assert float(metrics["linear_probe/train_top1"]) == pytest.approx(sum(accuracies[6:]) / 6)
    test = {"features": torch.cat(module.backbone.other_calls[-3:]), "labels": data.val.labels}
    assert float(metrics["linear_probe/top1"]) == pytest.approx(score(head, [test], 1))


def test_the_monitor_measures_the_layers_two_views() -> None:
    module = Somebodys()
    module.backbone = Remembers()
    metrics = fitted([RepresentationMonitor(layer=LAYER)], module, PairData()).callback_metrics
    first, second = module.backbone.training_calls[12:14]  # of the second epoch's first batch
    for key, value in by_definition(torch.cat([first, second])).items():
        assert float(metrics[f"collapse/{key}"]) == pytest.approx(value, rel=1e-4), key


@pytest.mark.usefixtures("without_type_checks")  # beartype draws from Python's random state
@pytest.mark.parametrize("settings", [{}, {"precision": "bf16-mixed", "accumulate_grad_batches": 4}], ids=str)
def test_training_is_bit_identical_with_and_without(settings: dict[str, Any]) -> None:
    data = PairData()
    without = run(Somebodys(), data, [], **settings)
    assert_equal(run(Somebodys(), data, probes(data), **settings), without)


# Two processes


def fit(watched: bool) -> dict[str, Any]:
    as_torchrun()
    data, module = PairData(train=60, val=41), Somebodys(nn.GroupNorm)
    trainer = fitted(probes(data) if watched else [], module, data, strategy="ddp", devices=2)
    return {
        "module": {name: value.clone() for name, value in module.state_dict().items()},
        "metrics": {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key},
    }


def test_two_ranks_score_as_others_do_and_leave_the_module_alone(two_ranks: Ranks) -> None:
    first, second = two_ranks(fit, True)
    assert first["metrics"] == second["metrics"]
    expected = accuracies_by_others(first["module"], PairData(train=60, val=41), nn.GroupNorm)
    assert {key: first["metrics"][key] for key in expected} == pytest.approx(expected)
    assert {"linear_probe/top1", "collapse/alignment"} <= first["metrics"].keys()
    for plain in two_ranks(fit, False):
        assert_equal(first["module"], plain["module"])


# What is collected


class Checkpointed(Somebodys):
    """Computes its activations again in backward."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = checkpoint(self.backbone, images, use_reentrant=False)
        return logits


def test_what_checkpointing_computes_again_in_backward_is_not_collected() -> None:
    metrics = []
    for module in (Somebodys(nn.GroupNorm), Checkpointed(nn.GroupNorm)):
        probe = LinearProbe(NUM_CLASSES, layer=LAYER)
        metrics.append(fitted([probe, RepresentationMonitor(layer=LAYER)], module, PairData()).callback_metrics)
    assert_equal(metrics[1], metrics[0])
    assert metrics[0]["collapse/num_rows"] == 16


class ByHand(Somebodys):
    """Steps once for each view."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (first, second), _ = batch
        optimizer: Any = self.optimizers()
        for view, other in ((first, second), (second, first)):
            optimizer.zero_grad()
            self.manual_backward(self.distance(view, other))
            optimizer.step()


def test_a_step_that_optimizes_by_hand_is_collected_around_its_backward_passes() -> None:
    monitor = RepresentationMonitor(layer=LAYER)
    assert fitted([monitor], ByHand(), PairData()).callback_metrics["collapse/num_rows"] == 16


@pytest.mark.parametrize("layer", ["backbone.bn1", "backbone.layer1", "backbone"])
def test_maps_are_averaged_before_the_next_layer_works_in_place(layer: str) -> None:
    module, images = Somebodys().eval(), torch.randn(5, 3, 4, 4)
    tap = Layer(layer)
    tap.attach(module)
    backbone = module.backbone
    with torch.no_grad():
        collected = tap.encode(module, images)
        maps = backbone.bn1(backbone.conv1(images))
        expected = {"backbone.bn1": maps.mean((2, 3)), "backbone": module(images)}
        expected["backbone.layer1"] = backbone.layer1(maps.relu()).mean((2, 3))
    assert torch.allclose(collected, expected[layer], atol=1e-6)


class InPlace(nn.Module):
    """What follows the layer overwrites its vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        zeros: Tensor = self.layer(images).mul_(0)
        return zeros


def test_vectors_are_collected_before_they_are_overwritten() -> None:
    module, images, tap = InPlace(), torch.randn(2, 3), Layer("layer")
    tap.attach(module)
    assert tap.encode(module, images).equal(module.layer(images))


def test_tokens_are_averaged_and_of_several_tensors_the_first_counts() -> None:
    tokens = torch.randn(2, 7, 5, dtype=torch.bfloat16)
    mean = torch.stack([row.float().sum(0) / 7 for row in tokens])
    for output in (tokens, (tokens, torch.zeros(2, 1)), [None, tokens], {"last_hidden_state": tokens, "pooler": 1}):
        assert torch.allclose(vectors(output, "layer"), mean, atol=1e-6)
    clips = torch.randn(2, 3, 4, 5, 6)
    assert torch.allclose(vectors(clips, "layer"), clips.mean((2, 3, 4)), atol=1e-6)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(4), r"torch\.float32 \[4\]"),
        (torch.zeros(4, 3).long(), r"torch\.int64 \[4, 3\]"),
        (None, "a NoneType"),
        ((), "a tuple"),
    ],
)
def test_outputs_that_are_no_features_are_refused(output: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"layer='backbone' returned {got}, and features are vectors \[B, D\]"):
        vectors(output, "backbone")


# The module afterwards


def hooks(module: nn.Module) -> list[Any]:
    return [hook for part in module.modules() for hook in part._forward_hooks.values()]


class Look(pl.Callback):
    def __init__(self) -> None:
        self.during: list[int] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.during.append(len(hooks(pl_module)))


def test_hooks_are_there_while_it_runs_and_gone_after_fit_and_validate() -> None:
    data, module, look = PairData(), Somebodys(), Look()
    callbacks = [LinearProbe(NUM_CLASSES, layer=LAYER), KNNProbe(k=3, bank=data.bank(), layer=LAYER), look]
    trainer = fitted(callbacks, module, data)
    assert hooks(module) == []
    trainer.validate(module, data, verbose=False)
    assert look.during == [2, 2, 2]
    assert hooks(module) == []
    module.trainer = None
    assert pickle.loads(pickle.dumps(module)).backbone.conv1.weight.equal(module.backbone.conv1.weight)


class Breaks(Somebodys):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        super().training_step(batch, batch_idx)
        raise ZeroDivisionError


def test_hooks_are_gone_after_an_error() -> None:
    module = Breaks()
    with pytest.raises(ZeroDivisionError):
        fitted([RepresentationMonitor(layer=LAYER)], module, PairData())
    assert hooks(module) == []


@pytest.mark.parametrize("wrap", ["wrapped", "in place"])
def test_layers_of_a_compiled_network_keep_their_names(wrap: str) -> None:
    module: Any = Somebodys().eval()
    images = torch.randn(5, 3, 4, 4)
    expected = module.backbone.pooled(images)
    if wrap == "wrapped":
        module.backbone = torch.compile(module.backbone, backend="aot_eager")
    else:
        module.backbone.compile(backend="aot_eager")
    tap = Layer(LAYER)
    tap.attach(module)
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(tap.encode(module, images), expected, atol=1e-6)
        module(images)
    assert tap.take() is None
    with pytest.raises(ValueError, match=r"Did you mean 'backbone\.avgpool'"):
        Layer("backbone.avgpol").attach(module)


# What is wrong


@pytest.mark.parametrize(
    ("layer", "advice"),
    [
        ("avgpool", r"Did you mean 'backbone\.avgpool'"),
        ("backbone.layer4", r"Did you mean 'backbone\.layer1'"),
        ("xyz", r"Did you mean 'backbone' or 'momentum_backbone'\?"),
    ],
)
def test_a_wrong_name_is_met_with_near_ones_before_training(layer: str, advice: str) -> None:
    class Untouched(Somebodys):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError

    with pytest.raises(ValueError, match=rf"Untouched has no submodule '{layer}'\. {advice}"):
        fitted([LinearProbe(NUM_CLASSES, layer=layer)], Untouched(), PairData())


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="layer = '' names no submodule"):
        LinearProbe(NUM_CLASSES, layer="")


def test_labels_without_a_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels= is a function of the batch, for features by layer="):
        KNNProbe(labels=labels_of)


class Unused(Somebodys):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("build", "step"),
    [
        (lambda data: LinearProbe(NUM_CLASSES, layer="spare"), "training_step"),
        (lambda data: RepresentationMonitor(layer="spare"), "training_step"),
    ],
)
def test_a_layer_that_was_not_called_is_named(build: Callable[[PairData], pl.Callback], step: str) -> None:
    data = PairData()
    with pytest.raises(TypeError, match=rf"reads what 'spare' returns, but Unused\.{step} did not call it\. .*forward"):
        fitted([build(data)], Unused(), data)


def test_a_validation_step_that_leaves_the_layer_out_is_named() -> None:
    class Lazy(Somebodys):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            return None

    data = PairData()
    with pytest.raises(TypeError, match=r"KNNProbe reads .* but Lazy\.validation_step did not call it"):
        fitted([KNNProbe(k=3, bank=data.bank(), layer=LAYER)], Lazy(), data)


def test_a_layer_called_twice_in_validation_is_refused() -> None:
    class Twice(Somebodys):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0]), self(batch[0])

    message = r"'backbone\.avgpool' returned 16 rows in Twice\.validation_step, for 8 images\. .*V is 1 in validation"
    with pytest.raises(ValueError, match=message):
        fitted([LinearProbe(NUM_CLASSES, layer=LAYER)], Twice(), PairData())


class Headless(Unused):
    """Its steps call the backbone; it has no forward."""

    forward = pl.LightningModule.forward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.backbone(batch[0][0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.backbone(batch[0])


class Prompted(Headless):
    """Its forward takes more than images."""

    def forward(self, images: Tensor, prompts: Tensor) -> Tensor:
        return self.backbone(images + prompts)


@pytest.mark.parametrize(
    ("build", "layer", "error", "message"),
    [
        (Headless, LAYER, RuntimeError, r"Headless\.forward\(images\), which failed: .* missing .*\. Define forward"),
        (Prompted, LAYER, RuntimeError, r"Prompted\.forward\(images\), which failed: .*'prompts'\. Define forward"),
        (Unused, "spare", ValueError, r"'spare' was not called in Unused\.forward\(images\) with 10 images"),
    ],
)
def test_a_bank_that_forward_cannot_encode_says_so(
    build: type[Unused], layer: str, error: type[Exception], message: str
) -> None:
    data = PairData()
    with pytest.raises(error, match=message):
        fitted([LinearProbe(solver="lda", bank=data.bank(), layer=layer)], build(), data)


# Anybody's batches


def test_labels_images_and_index_are_found_where_batches_usually_have_them() -> None:
    images, labels, index = torch.zeros(3, 1, 2, 2), torch.arange(3, dtype=torch.int32), torch.arange(3)
    for batch in ((images, labels), [images, labels], [images, labels, ["a", "b", "c"]]):
        assert labels_of(batch).equal(labels.long())
        assert images_of(batch) is images
        assert index_of(batch) is None
        assert num_images_in(batch) == 3
    mapping = {"images": images, "labels": labels, "index": index}
    assert labels_of(mapping).dtype == torch.int64
    assert images_of(mapping) is images
    assert index_of(mapping) is index
    assert labels_of({"image": images, "label": index}) is index
    assert num_images_in(((images, images), labels)) == 3
    assert num_images_in("text") is None


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (torch.zeros(2, 3), r"a batch of float32 \[2, 3\].* but there is nothing"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), r"but there is float32 \[2, 3\]"),
        ({"image": torch.zeros(2, 3), "target": torch.zeros(2)}, r"a batch of 'image', 'target'"),
        ([torch.zeros(2), torch.zeros(2, 1).long()], r"but there is int64 \[2, 1\]"),
    ],
)
def test_a_batch_without_labels_says_where_they_are_looked_for(batch: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"No labels in {got if got.startswith('a batch') else '.*' + got}.*labels="):
        labels_of(batch)


def test_a_bank_batch_without_images_says_what_it_holds() -> None:
    with pytest.raises(TypeError, match=r"No images in a batch of \(\(float32 \[1\], float32 \[1\]\), int64 \[1\]\)"):
        images_of(((torch.zeros(1), torch.zeros(1)), torch.zeros(1).long()))


class Turned(PairData):
    """The class first."""

    def __init__(self) -> None:
        super().__init__()
        self.collate = lambda items: list(reversed(torch.utils.data.default_collate(items)))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(super().train_dataloader().dataset, batch_size=8, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(super().val_dataloader().dataset, batch_size=8, collate_fn=self.collate)


class OfTurned(Somebodys):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[::-1], batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch[::-1], batch_idx)


def test_labels_elsewhere_are_found_by_a_function_of_the_batch() -> None:
    def probe(**options: Any) -> LinearProbe:
        return LinearProbe(NUM_CLASSES, layer=LAYER, **options)

    usual = fitted([probe()], Somebodys(), PairData()).callback_metrics
    turned = fitted([probe(labels=lambda batch: batch[0])], OfTurned(), Turned()).callback_metrics
    assert_equal(turned, usual)
    with pytest.raises(TypeError, match=r"No labels in what labels= returned: .* but there is a str"):
        fitted([probe(labels=lambda batch: "dog")], OfTurned(), Turned())
