"""Linear classifiers trained by SGD on augmented images, by the recipes of the papers that made them customary.

What differs from the official codes: the last epoch's classifier is scored, once, where MoCo's and MAE's codes keep the
best of all epochs on the test images; classifiers are in float32; every epoch drops its ragged end; BatchNorm's
statistics are those of the whole batch, not of each device's share; crops are drawn as torchvision draws them, where
BYOL's and MAE's codes cut those off that do not fit.

Where settings compete, none is chosen on the test images. In the same passes over the images every head is trained
twice: on all labelled training images, and on those that are not held out. The second choose the setting, by the
held-out images without augmentation (of equals, the earlier in the grid); the first one of that setting is scored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastive.evaluation.features import Features, check_finite
from contrastive.evaluation.linear import HELD_OUT, labelled_test, stratified_split
from contrastive.evaluation.protocols.protocol import Evaluation, EvaluationProtocol, Progress, Task, classification
from contrastive.evaluation.sgd import Normalisation, Schedule, SGDHeads

ROWS_PER_BLOCK = 1024  # of which all heads' logits are in memory at once


@dataclass(frozen=True)
class TrainedHeads:
    """What a training gave.

    Attributes:
        heads: By input, a head for each learning rate, trained on all labelled images.
        twins: The same, trained without the held-out images; empty where none are.
        learning_rates: As they were used.
        batch_size: As it was used.
        num_steps: Of each head.
        num_images: Labelled images that were seen.
    """

    heads: Mapping[str, SGDHeads]
    twins: Mapping[str, SGDHeads]
    learning_rates: tuple[float, ...]
    batch_size: int
    num_steps: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class SGDProtocol(EvaluationProtocol):
    """Training on random crops and flips, with one learning rate or the best of several.

    Another number of epochs (``dataclasses.replace``) stretches the schedule with it. A batch size larger than the
    data set becomes that of the data set.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step, over all ranks.
        learning_rates: As published.
        base_batch_size: Images a step that the learning rates are for; with others they are scaled linearly. None:
            they are not.
        schedule: Of the learning rates.
        lars: See ``SGDHeads``.
        momentum: See ``SGDHeads``.
        nesterov: See ``SGDHeads``.
        weight_decay: See ``SGDHeads``.
        normalisation: See ``SGDHeads``.
        initial_std: Standard deviation of the normal weights that a head starts from, its intercept at 0. None: as
            Haiku's ``Linear`` starts, 1 / sqrt(D), cut off at two of them.
        crop_min: Smallest area of a crop, as a share of the image's.
        blocks: Whether heads compete on all of ``Task.inputs``, or have the encoder's output.
    """

    epochs: int
    batch_size: int
    learning_rates: tuple[float, ...]
    base_batch_size: int | None = 256
    schedule: Schedule
    lars: bool = False
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    normalisation: Normalisation = "none"
    initial_std: float | None = 0.01
    crop_min: float = 0.08
    blocks: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs = {self.epochs}, batch_size = {self.batch_size}: each is 1 at least.")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates = {self.learning_rates}: give one or more, each greater than 0.")

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``; ``progress`` is told of ``"training steps"``."""
        inputs = self._inputs(task)
        settings = [(name, rate) for name in inputs for rate in self.learning_rates]
        held_out = self._held_out(task, seed=seed) if len(settings) > 1 else None
        trained = self.train(task, held_out=None if held_out is None else held_out.index, seed=seed, progress=progress)
        details: dict[str, Any] = {
            "epochs": self.epochs,
            "steps": trained.num_steps,
            "batch_size": trained.batch_size,
            "scaled_learning_rates": trained.learning_rates,
        }
        if trained.batch_size < self.batch_size:
            details["batch_size_lowered_from"] = self.batch_size
        name, rate = settings[0]
        chosen: dict[str, Any] = {}
        if held_out is not None:
            top1 = [score for key, heads in trained.twins.items() for score in _top1(heads, held_out, inputs[key])]
            name, rate = settings[top1.index(max(top1))]
            chosen = {"learning_rate": rate} if len(inputs) == 1 else {"learning_rate": rate, "input": name}
            details["held_out"] = HELD_OUT
            details["held_out_top1"] = {
                f"{rate:g}" if len(inputs) == 1 else f"{name}, {rate:g}": score
                for (name, rate), score in zip(settings, top1, strict=True)
            }
        features, labels = labelled_test(task.features("val", blocks=self.blocks), task.num_classes)
        head = self.learning_rates.index(rate)
        logits = [trained.heads[name].logits(rows)[:, head] for rows in features[:, inputs[name]].split(ROWS_PER_BLOCK)]
        scores, confusion = classification(torch.cat(logits), labels)
        edges = (min(self.learning_rates), max(self.learning_rates))
        return Evaluation(
            scores=scores,
            num_train=trained.num_images,
            num_test=len(labels),
            chosen=chosen,
            at_edge=("learning_rate",) if len(self.learning_rates) > 1 and rate in edges else (),
            details=details,
            confusion=confusion,
        )

    def train(
        self,
        task: Task,
        *,
        held_out: Int64[Tensor, " M"] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> TrainedHeads:
        """All heads, in ``epochs`` passes over the augmented training images.

        Args:
            task: See ``EvaluationProtocol``.
            held_out: Numbers of the images that the twins are trained without; None trains no twins.
            seed: Of the heads' start, the order and the crops.
            progress: See ``evaluate``.

        Raises:
            ValueError: There is no labelled image, or features are not finite.
        """
        batch_size = max(1, min(self.batch_size, task.num_batches(1)))
        scale = batch_size / self.base_batch_size if self.base_batch_size else 1.0
        learning_rates = tuple(scale * rate for rate in self.learning_rates)
        steps_per_epoch = task.num_batches(batch_size)
        inputs = self._inputs(task)
        heads: dict[str, SGDHeads] = {}
        twins: dict[str, SGDHeads] = {}
        seen = torch.empty(0, dtype=torch.int64)
        step = 0
        for epoch in range(self.epochs):
            numbers = [seen]
            for batch in task.augmented(
                epoch, batch_size=batch_size, crop_min=self.crop_min, seed=seed, blocks=self.blocks
            ):
                check_finite(batch.features)
                if not heads:
                    heads = self._heads(batch.features, task.num_classes, learning_rates, inputs, seed=seed)
                    if held_out is not None:
                        twins = self._heads(batch.features, task.num_classes, learning_rates, inputs, seed=seed)
                share = self.schedule(step, steps_per_epoch=steps_per_epoch, epochs=self.epochs)
                for name, stack in heads.items():
                    stack.update(batch.features[:, inputs[name]], batch.labels, share)
                if held_out is not None:
                    labels = batch.labels.masked_fill(torch.isin(batch.index, held_out), -1)
                    for name, stack in twins.items():
                        stack.update(batch.features[:, inputs[name]], labels, share)
                numbers.append(batch.index[batch.labels >= 0].cpu())
                step += 1
                if progress is not None:
                    progress("training steps", step, self.epochs * steps_per_epoch)
            seen = torch.cat(numbers).unique()
        if len(seen) == 0:
            raise ValueError(
                f"None of the {task.num_batches(1)} training images has a label to train a classifier with. Give class "
                "folders, or a protocol that needs no labels."
            )
        return TrainedHeads(heads, twins, learning_rates, batch_size, step, len(seen))

    def _inputs(self, task: Task) -> Mapping[str, slice]:
        return task.inputs if self.blocks else {"output": slice(None)}

    def _heads(
        self,
        features: Tensor,
        num_classes: int,
        learning_rates: tuple[float, ...],
        inputs: Mapping[str, slice],
        *,
        seed: int,
    ) -> dict[str, SGDHeads]:
        """Heads as they start: the same for equal seeds, on every device and rank."""
        generator = torch.Generator().manual_seed(seed)
        heads = {}
        for name, columns in inputs.items():
            width = features[:, columns].shape[1]
            weights = torch.zeros(len(learning_rates), num_classes, width + 1)
            if self.initial_std is None:
                std = width**-0.5
                torch.nn.init.trunc_normal_(weights[..., :-1], std=std, a=-2 * std, b=2 * std, generator=generator)
            else:
                torch.nn.init.normal_(weights[..., :-1], std=self.initial_std, generator=generator)
            heads[name] = SGDHeads(
                weights.to(features.device),
                learning_rates,
                lars=self.lars,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                normalisation=self.normalisation,
            )
        return heads

    def _held_out(self, task: Task, *, seed: int) -> Features:
        """A tenth of the labelled training images, without augmentation."""
        train = task.features("train", blocks=self.blocks)
        features, labels = train.labelled()
        check_finite(features)
        return train.rows(train.known).rows(stratified_split(labels, HELD_OUT, seed=seed))


def _top1(heads: SGDHeads, images: Features, columns: slice) -> list[float]:
    """Each head's fraction of images that are right."""
    features, labels = images.labelled()
    hits = torch.zeros(len(heads.learning_rates), dtype=torch.int64, device=features.device)
    for rows, targets in zip(features[:, columns].split(ROWS_PER_BLOCK), labels.split(ROWS_PER_BLOCK), strict=True):
        hits += (heads.logits(rows).argmax(-1) == targets[:, None]).sum(0)
    return (hits.double() / len(labels)).tolist()


SIMCLR_SGD = SGDProtocol(
    source="Chen et al. 2020, SimCLR, appendix B.6; the ImageNet command for linear evaluation in the README of "
    "google-research/simclr, whose weight decay of 1e-6, intercept included, the paper does not have.",
    epochs=90,
    batch_size=4096,
    learning_rates=(0.1,),
    schedule=Schedule(cosine=True),
    nesterov=True,
    weight_decay=1e-6,
    initial_std=0.0,
)

MOCO_V2 = SGDProtocol(
    source="main_lincls.py of facebookresearch/moco (defaults), for MoCo v1 and v2: the rate falls to a tenth after "
    "epochs 60 and 80 of 100, and is not scaled with the batch size.",
    epochs=100,
    batch_size=256,
    learning_rates=(30.0,),
    base_batch_size=None,
    schedule=Schedule(drops=(0.6, 0.8)),
)

MOCO_V3 = SGDProtocol(
    source="main_lincls.py of facebookresearch/moco-v3 (defaults), as CONFIG.md has it for ResNet-50.",
    epochs=90,
    batch_size=1024,
    learning_rates=(0.1,),
    schedule=Schedule(cosine=True, by_epoch=True),
)

MOCO_V3_VIT = replace(
    MOCO_V3,
    source="main_lincls.py of facebookresearch/moco-v3 with --lr=3, as CONFIG.md has it for ViT-S and ViT-B.",
    learning_rates=(3.0,),
)

BYOL = SGDProtocol(
    source="Grill et al. 2020, BYOL, appendix C: five rates, the best on held-out training images, batches of 1024; "
    "start, schedule and optimizer from byol/eval_experiment.py and byol/configs/eval.py of "
    "google-deepmind/deepmind-research, where the rate is one that is given and all training images are trained on.",
    epochs=80,
    batch_size=1024,
    learning_rates=(0.05, 0.1, 0.2, 0.3, 0.4),
    schedule=Schedule(cosine=True),
    nesterov=True,
    initial_std=None,
)

DINOV2 = SGDProtocol(
    source="dinov2/eval/linear.py of facebookresearch/dinov2 (defaults, on the 8 GPUs of dinov2/run/submit.py): 13 "
    "rates for each of 4 inputs, 10 epochs of 1250 steps. There, the best of the 52 on the test images is reported.",
    epochs=10,
    batch_size=1024,
    learning_rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    schedule=Schedule(cosine=True),
    blocks=True,
)

# Made for large data: for a small batch its rate is scaled down to where LARS hardly moves the weights.
MAE = SGDProtocol(
    source="main_linprobe.py and FINETUNE.md of facebookresearch/mae, for ViT-B (ViT-L and ViT-H: 50 epochs suffice).",
    epochs=90,
    batch_size=16384,
    learning_rates=(0.1,),
    schedule=Schedule(cosine=True, warmup=10 / 90),
    lars=True,
    normalisation="batch",
)
