"""What every method shares, and nothing else: views in, loss and features out, one optimizer."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import pytorch_lightning as pl
from jaxtyping import Float, Float32, Int64, UInt8
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer

from contrastive.augmentations import MakeViews, RaggedImages, SampleKey, views_from
from contrastive.chunks import check_chunk_size, encode_views
from contrastive.distributed import from_rank_zero
from contrastive.optim import MakeOptimizer, training_length
from contrastive.sharding import check_all_sharded, register_step_post_hook, shard_, share_running_statistics_

Images = UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"] | RaggedImages  # floats in [0, 1]
Views = Sequence[Float[Tensor, "B C _ _"]]
AnyMakeViews = MakeViews | Callable[[Tensor], Sequence[Tensor]]  # the second is adapted by views_from


class Batch(TypedDict):
    """What a data loader yields; the index best on the host, where views draw their numbers."""

    image: Images
    index: Int64[Tensor, " B"]
    label: NotRequired[Int64[Tensor, " B"]]


class Step(NamedTuple):
    """What a method computes on one batch."""

    loss: Float[Tensor, ""]
    features: Float[Tensor, "VB D"]  # of the evaluated encoder, V views one after the other; what callbacks look at
    # What the projector makes of these views, before any predictor: where a collapse shows first.
    projections: Float[Tensor, "VB P"] | None = None


class ContrastiveModule(pl.LightningModule):
    """Subclass, build your heads in ``__init__``, and write ``step``.

    Args:
        encoder: Images [B, C, H, W] to features [B, D], with ``num_features = D``.
        make_views: A pipeline of ``contrastive.augmentations``; or any callable from float images in [0, 1]
            to a view or a list of views, which is adapted by ``views_from``.
        make_optimizer: From ``contrastive.optim``, or any function of (module, TrainingLength).
        encode_chunk_size: Images encoded at a time, and again in the backward pass, for batches that do not fit into
            memory; the heads still see all of them. BatchNorm in the encoder then normalises each chunk by itself. See
            ``contrastive.chunks``. None: all at once.
        seed: Seeds the augmentations, together with the epoch and each image's index.
    """

    def __init__(
        self,
        encoder: nn.Module,
        make_views: AnyMakeViews,
        make_optimizer: MakeOptimizer,
        *,
        encode_chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_chunk_size(encode_chunk_size)
        self.encoder = encoder
        self.make_views = make_views if isinstance(make_views, MakeViews) else views_from(make_views)
        self.make_optimizer = make_optimizer
        self.encode_chunk_size = encode_chunk_size
        self.seed = seed

    @abstractmethod
    def step(self, views: Views, batch: Batch) -> Step:
        """Loss and encoder features for one batch: its views, and what else is known of its images."""

    def encode(self, network: nn.Module, views: Views) -> Float[Tensor, "VB D"]:
        """Features of views, one view after the other, at most ``encode_chunk_size`` images at a time.

        Views side by side that have one size share a pass, and so BatchNorm's statistics; call once for each view where
        the paper keeps them apart.
        """
        return encode_views(network, views, self.encode_chunk_size)

    @property
    def evaluated_encoder(self) -> nn.Module:
        """The network that features are of: the encoder; a method that evaluates another one says so."""
        return self.encoder

    def after_optimizer_step(self, progress: float) -> None:
        """Momentum branches move here: called once per optimizer step that really happened.

        Args:
            progress: Of training: 0 at its first optimizer step, 1 at its last.
        """

    def forward(self, images: Images) -> Float[Tensor, "B D"]:
        """Features of unaugmented images: uint8, or float32 in [0, 1], [B, C, H, W] or ragged, -> [B, D]."""
        features: Tensor = self.evaluated_encoder(self.make_views.evaluation_view(images))
        return features

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and what callbacks look at: detached features and projections, labels, index."""
        check_batch(batch)
        if self.device_mesh is not None:
            share_running_statistics_(self)
        step = self.step(self.make_views(batch["image"], self.key_of(batch)), batch)
        self.log("train/loss", step.loss.detach(), batch_size=len(batch["image"]), prog_bar=True)
        # Lightning detaches only "loss"; features kept attached would hold the graph until the next batch.
        watched = {"loss": step.loss, **_watched(step.features.detach(), batch)}
        if step.projections is not None:
            watched["projections"] = step.projections.detach()
        return watched

    def on_validation_start(self) -> None:
        """Measure what a checkpoint holds: BatchNorm statistics of the first rank, as in DDP's next forward pass."""
        wrapped = self.trainer.model
        if isinstance(wrapped, DistributedDataParallel) and wrapped.broadcast_buffers:
            for buffer in self.buffers():
                buffer.copy_(from_rank_zero(buffer))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Features of unaugmented images, for callbacks to score."""
        check_batch(batch)
        if self.device_mesh is not None:
            share_running_statistics_(self)
        return _watched(self(batch["image"]), batch)

    def key_of(self, batch: Batch) -> SampleKey:
        """What this epoch's random numbers of the batch's images depend on."""
        return SampleKey(self.seed, self.current_epoch, batch["index"])

    def configure_model(self) -> None:
        """Shard the method, where the strategy is ``ModelParallelStrategy``; see ``contrastive.sharding``."""
        if self.device_mesh is not None:
            shard_(self)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer, one schedule stepped with it."""
        check_all_sharded(self)
        length = training_length(self.trainer)
        optimizer, schedule = self.make_optimizer(self, length)
        last = max(1, length.steps - 1)  # global_step counts from 0, and moves on after the optimizer's step

        def after_step(optimizer: Optimizer, *_: Any) -> None:
            # A step in which no parameter has a gradient is none: so a callback may leave one out.
            if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                self.after_optimizer_step(min(1.0, self.global_step / last))

        # The optimizer's own hook and not Lightning's: it is silent when a gradient scaler skips a step.
        if self.device_mesh is None:
            optimizer.register_step_post_hook(after_step)
        else:
            register_step_post_hook(optimizer, after_step, lambda: self.global_step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def feature_dim(encoder: nn.Module) -> int:
    """The encoder's feature width D, from ``num_features``, timm's name for it.

    Raises:
        TypeError: The encoder does not say.
    """
    width = getattr(encoder, "num_features", None)
    if not isinstance(width, int):
        raise TypeError(
            f"{type(encoder).__name__} does not say how wide its features are. Use contrastive.encoders, "
            "timm.create_model(name, num_classes=0), or set encoder.num_features yourself."
        )
    return width


def pair(views: Views) -> tuple[Tensor, Tensor]:
    """The two views of a method that compares two.

    Raises:
        ValueError: There are more or fewer.
    """
    if len(views) != 2:
        raise ValueError(
            f"This method compares two views of an image, but make_views gave {len(views)}. "
            "Use a pipeline of two, such as contrastive.augmentations.moco_v2_views."
        )
    return views[0], views[1]


def labels_of(batch: Batch) -> Int64[Tensor, " B"]:
    """The labels, for a method that learns from them.

    Raises:
        ValueError: The batch has none.
    """
    if "label" not in batch:
        raise ValueError(
            "This method learns from labels, but the batch has no 'label'. Train on a labelled data set, such as "
            "contrastive.data.ImageFolders of class folders."
        )
    return batch["label"]


def check_batch(batch: Any) -> None:
    """Say what a batch must be, where a tuple would fail far from its cause. What images must be, views say.

    Raises:
        TypeError: The batch is no mapping with ``image`` and ``index``.
    """
    if not isinstance(batch, Mapping) or not {"image", "index"} <= batch.keys():
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(
            f"A batch is a mapping with 'image' and 'index' (and 'label', where known), but the data loader gave "
            f"{got}. Use contrastive.data; contrastive.data.from_dataset adapts any map-style data set."
        )


def _watched(features: Tensor, batch: Batch) -> dict[str, Tensor]:
    watched = {"features": features, "index": batch["index"]}
    if "label" in batch:
        watched["labels"] = batch["label"]
    return watched
