"""What features show without a classifier: clusters, retrieval, and measures that take no label."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive.evaluation.clusters import cluster
from contrastive.evaluation.features import check_finite
from contrastive.evaluation.protocols.protocol import AugmentedBatch, Evaluation, EvaluationProtocol, Progress, Task
from contrastive.evaluation.ranking import retrieval
from contrastive.evaluation.representation import (
    alignment,
    alpha_req,
    effective_rank,
    feature_std,
    lidar,
    rankme,
    uniformity,
)


@dataclass(frozen=True, kw_only=True)
class ClusterProtocol(EvaluationProtocol):
    """K-means of the test images, as many clusters as they have classes, scored against the classes.

    No training image is used, and labels score the clusters and say how many there are.

    Attributes:
        normalize: See ``cluster``.
        iterations: See ``cluster``.
        restarts: See ``cluster``.
    """

    normalize: bool = True
    iterations: int = 100
    restarts: int = 10

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``. The scores are ``accuracy``, ``nmi`` and ``ari``."""
        found = cluster(
            task.features("val"),
            normalize=self.normalize,
            iterations=self.iterations,
            restarts=self.restarts,
            seed=seed,
        )
        return Evaluation(
            scores={"accuracy": found.accuracy, "nmi": found.nmi, "ari": found.ari},
            num_train=0,
            num_test=found.num_labelled,
            details={
                "num_clusters": found.num_clusters,
                "num_classes": found.num_classes,
                "num_clustered": found.num_images,
                "inertia": found.inertia,
            },
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol(EvaluationProtocol):
    """Each test image looks for training images of its class, by cosine similarity.

    Attributes:
        recall_at: The k of recall at k; see ``retrieval``.
    """

    recall_at: tuple[int, ...] = (1, 5, 10)

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``.

        The scores are ``recall at 1``, ..., ``mean_average_precision``, ``r_precision`` and ``map_at_r``, over the test
        images that have something to find.
        """
        found = retrieval(task.features("val"), task.features("train"), recall_at=self.recall_at)
        return Evaluation(
            scores={
                **{f"recall at {k}": value for k, value in found.recall.items()},
                "mean_average_precision": found.mean_average_precision,
                "r_precision": found.r_precision,
                "map_at_r": found.map_at_r,
            },
            num_train=found.num_gallery,
            num_test=found.num_queries,
            details={"num_without_match": found.num_without_match},
        )


@dataclass(frozen=True, kw_only=True)
class LabelFreeProtocol(EvaluationProtocol):
    """Measures of the test images' features that take no label, and two that take views of training images.

    The ranks grow with the number of images, LiDAR with that of views: the details say both. Views are crops and flips,
    and training images are encoded once for each view.

    Attributes:
        num_views: V; 0 leaves out alignment and LiDAR.
        num_images: Training images whose views are compared, at most.
        crop_min: Smallest area of a crop, as a share of the image's.
        batch_size: Images encoded at a time, at most.
    """

    num_views: int = 10
    num_images: int = 1000
    crop_min: float = 0.08
    batch_size: int = 256

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``.

        The scores are ``rankme``, ``effective_rank``, ``alpha_req``, ``uniformity``, ``feature_std``, and, of views,
        ``alignment`` and ``lidar``. ``num_test`` is the n of the first five.
        """
        features = task.features("val").features
        check_finite(features)
        measures = (rankme, effective_rank, alpha_req, uniformity, feature_std)
        scores = {measure.__name__: float(measure(features)) for measure in measures}
        num_images = 0
        if self.num_views > 0:
            views = self.views(task, seed, progress)
            check_finite(views.flatten(0, 1))
            num_images = views.shape[1]
            scores |= {"alignment": float(alignment(views)), "lidar": float(lidar(views))}
        return Evaluation(
            scores=scores,
            num_train=num_images,
            num_test=len(features),
            details={
                "n_of_rankme": len(features),
                "num_features": features.shape[1],
                "n_of_lidar": num_images,
                "views_of_lidar": self.num_views,
            },
        )

    def views(self, task: Task, seed: int, progress: Progress | None) -> Float[Tensor, "V N D"]:
        """Features of the views; view v of image n is ``views[v, n]``.

        The images are the first of the first epoch, whose order is random, without those that a later epoch leaves out
        with its ragged end.
        """
        size = _batch_size(len(task.features("train")), self.batch_size)
        found: list[tuple[Tensor, Tensor]] = []
        wanted: Tensor | None = None
        for view in range(self.num_views):
            if progress is not None:
                progress("views", view, self.num_views)
            batches = task.augmented(view, batch_size=size, crop_min=self.crop_min, seed=seed)
            found.append(_take(batches, wanted, self.num_images if wanted is None else len(wanted)))
            wanted = found[-1][0]
        if progress is not None:
            progress("views", self.num_views, self.num_views)
        assert wanted is not None  # there is a view
        return torch.stack([features[torch.isin(numbers, wanted)] for numbers, features in found])


def _take(
    batches: Iterator[AugmentedBatch], wanted: Int64[Tensor, " W"] | None, at_most: int
) -> tuple[Int64[Tensor, " N"], Float[Tensor, "N D"]]:
    """Numbers, ascending, and features of the wanted images, or of the first ones; no more batches than it takes."""
    numbers, features, count = [], [], 0
    for batch in batches:
        mine = torch.ones_like(batch.index, dtype=torch.bool) if wanted is None else torch.isin(batch.index, wanted)
        numbers.append(batch.index[mine][: at_most - count])
        features.append(batch.features[mine][: at_most - count])
        count += len(numbers[-1])
        if count == at_most:
            break
    ordered, order = torch.cat(numbers).sort()
    return ordered, torch.cat(features)[order]


def _batch_size(num_images: int, at_most: int) -> int:
    """That which leaves out the fewest images as a ragged end, and no smaller than half of ``at_most``."""
    sizes = range(max(1, at_most // 2), min(at_most, num_images) + 1)
    return min(sizes, key=lambda size: (num_images % size, -size), default=num_images)


CLUSTER = ClusterProtocol(
    source="Accuracy by the Hungarian method, NMI and ARI of clusters of the test images: Van Gansbeke et al. 2020, "
    "SCAN. K-means by k-means++, on features of length 1, the best of 10 restarts: this project's own choice."
)

RETRIEVAL = RetrievalProtocol(
    source="Recall at k: Oh Song et al. 2016. R-precision and MAP@R: Musgrave et al. 2020. Test images as queries, "
    "training images as the gallery, cosine similarity: this project's own choice."
)

LABEL_FREE = LabelFreeProtocol(
    source="RankMe: Garrido et al. 2023. Effective rank: Roy & Vetterli 2007. alpha-ReQ: Agrawal et al. 2022. "
    "Alignment and uniformity: Wang & Isola 2020. LiDAR: Thilak et al. 2023. Of the encoder's features, not of "
    "projections; crops of 8 % or more of the image as torchvision's default; 10 views of 1000 images: "
    "this project's own choice."
)
