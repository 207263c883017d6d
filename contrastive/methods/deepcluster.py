"""DeepCluster: cluster all features, learn the clusters as if they were classes, and begin again.

Caron, Bojanowski, Joulin, Douze. Deep Clustering for Unsupervised Learning of Visual Features. ECCV 2018.
https://arxiv.org/abs/1807.05520. Official code: https://github.com/facebookresearch/deepcluster.

Shape letters
    V  views of an image      B  images on this rank      D  feature width      K  clusters      N  training images
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from contrastive.banks import bank_loader
from contrastive.clustering import kmeans, whitened
from contrastive.distributed import from_rank_zero, gather_rows
from contrastive.losses import cross_entropy
from contrastive.modes import eval_mode
from contrastive.module import AnyMakeViews, Batch, ContrastiveModule, Step, Views, check_batch, feature_dim
from contrastive.optim import MakeOptimizer
from contrastive.sharding import sharded_as

CHECKPOINT_KEY = "deepcluster_assignments"


class DeepCluster(ContrastiveModule):
    """An encoder, and a linear classifier of the clusters that its own features fell into when the epoch began.

    The trainer needs a data module with ``bank_dataloader()``: the training images, unaugmented, whose ``index`` counts
    them. Those of ``contrastive.data`` have it. Their features take N x D x 4 bytes on every rank, and up to three
    times that while they are gathered and whitened.

    Args:
        encoder: Images [B, 3, H, W] to features [B, D], with ``num_features = D``.
        make_views: Turns a batch of images into views of each, one or more; see ``contrastive.augmentations``.
        make_optimizer: See ``contrastive.optim``.
        num_clusters: K. The official code: 10000 for ImageNet's 1000 classes.
        pca_dim: Width that features are reduced to before they are clustered, at most. The paper: 256.
        kmeans_iterations: At most so many in an epoch. The official code: 20.
        encode_chunk_size: Views encoded at a time, for batches that do not fit into memory; see ``ContrastiveModule``.
        seed: Of the augmentations, the clustering and the classifiers.

    Attributes:
        assignments: The cluster of each training image by its index, -1 for one that was not clustered; int64 [N] on
            the host. In checkpoints, but not in the ``state_dict``. None before the first epoch.
    """

    def __init__(
        self,
        encoder: nn.Module,
        make_views: AnyMakeViews,
        make_optimizer: MakeOptimizer,
        *,
        num_clusters: int = 10000,
        pca_dim: int = 256,
        kmeans_iterations: int = 20,
        encode_chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder, make_views, make_optimizer, encode_chunk_size=encode_chunk_size, seed=seed)
        self.num_clusters, self.pca_dim, self.kmeans_iterations = num_clusters, pca_dim, kmeans_iterations
        self.classifier = nn.Linear(feature_dim(encoder), num_clusters)
        self.assignments: Int64[Tensor, " N"] | None = None

    def step(self, views: Views, batch: Batch) -> Step:
        """Equation 1 of the paper, each image weighted by the inverse of its cluster's size (section 3.3)."""
        labels, weights = (of_image.repeat(len(views)) for of_image in self.pseudo_labels(batch))  # [VB] each
        features = self.encode(self.encoder, views)  # [VB, D]
        return Step(cross_entropy(self.classifier(features), labels, weights=weights), features)

    def pseudo_labels(self, batch: Batch) -> tuple[Int64[Tensor, " B"], Float[Tensor, " B"]]:
        """The cluster of each image, and its weight: 1 on average over all images, and equal sums for all clusters.

        Raises:
            RuntimeError: Nothing has been clustered yet.
            ValueError: An image is none of those that were clustered.
        """
        if self.assignments is None:
            raise RuntimeError(
                "DeepCluster has no pseudo-labels before the first epoch, where it clusters the training images. Train "
                "it by Trainer.fit, or set assignments yourself, a cluster for each index."
            )
        index = batch["index"].cpu()
        known = (index >= 0) & (index < len(self.assignments))
        labels = self.assignments[index.where(known, 0)].where(known, -1)  # [B]
        if bool((labels < 0).any()):
            raise ValueError(
                f"The image of index {int(index[labels < 0][0])} has no pseudo-label: it was not among those of "
                "bank_dataloader() when the epoch began. The training and the bank loader must give the same images "
                "the same index."
            )
        sizes = self.assignments[self.assignments >= 0].bincount()  # [at most K]
        weights = sizes.sum() / (sizes.count_nonzero() * sizes[labels])  # [B]
        return labels.to(self.device), weights.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Cluster all training images anew, and begin a new classifier (Figure 1 of the paper).

        As in the official code, the classifier's weights are drawn from N(0, 0.01^2) and its biases are zero; what the
        optimizer remembers of it (momentum, where theirs has none) is forgotten. All ranks do the same.
        """
        seed = int(np.random.default_rng([self.seed, self.current_epoch]).integers(2**63))
        numbers, features = self.all_features()
        rows = whitened(features, self.pca_dim)
        clusters = kmeans(rows, self.num_clusters, iterations=self.kmeans_iterations, seed=seed)
        assignments = torch.full((int(numbers[-1]) + 1,), -1)
        assignments[numbers.cpu()] = from_rank_zero(clusters.assignments).cpu()
        self.assignments = assignments
        with torch.no_grad():
            weight = torch.empty(self.classifier.weight.shape)  # on the host, where all ranks draw the same
            weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
            self.classifier.weight.copy_(sharded_as(self.classifier.weight, weight))
            self.classifier.bias.zero_()
        for optimizer in self.trainer.optimizers:
            for parameter in self.classifier.parameters():
                optimizer.state.pop(parameter, None)

    @torch.no_grad()
    def all_features(self) -> tuple[Int64[Tensor, " N"], Float[Tensor, "N D"]]:
        """The training images' numbers, ascending, and their features without augmentation, on every rank.

        The mode of every module and the global random state are left as they are found.
        """
        index, features = [], []
        with isolate_rng(), eval_mode(self), self.trainer.precision_plugin.forward_context():
            for batch in bank_loader(self.trainer, reader="DeepCluster"):
                check_batch(batch)
                index.append(batch["index"].to(self.device))
                features.append(self(batch["image"].to(self.device)).float())
        numbers, place = gather_rows(torch.cat(index)).unique(return_inverse=True)  # each image once
        rows = features[0].new_empty(len(numbers), features[0].shape[1])
        rows[place] = gather_rows(torch.cat(features))
        return numbers, rows

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run resumed within an epoch goes on with the epoch's pseudo-labels."""
        checkpoint[CHECKPOINT_KEY] = self.assignments

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run resumed within an epoch goes on with the epoch's pseudo-labels."""
        self.assignments = checkpoint.get(CHECKPOINT_KEY)
