"""Nearest neighbours among the training images, unaugmented: nothing is trained and nothing chosen."""

from dataclasses import dataclass

import torch

from contrastive.evaluation.features import check_finite
from contrastive.evaluation.knn import KNNClassifier
from contrastive.evaluation.linear import labelled_test
from contrastive.evaluation.protocols.protocol import Evaluation, EvaluationProtocol, Progress, Task, classification

QUERIES_PER_REPORT = 1024


@dataclass(frozen=True, kw_only=True)
class KNNProtocol(EvaluationProtocol):
    """Weighted votes of the nearest training images, at fixed numbers of neighbours.

    All numbers are scored with one look-up. The first gives the scores, whichever is best on the test images; the
    others stand in the details. Where there are fewer training images than neighbours, all of them vote.

    Attributes:
        k: Neighbours that vote, the headline's first.
        temperature: A neighbour of cosine similarity s casts exp(s / temperature) votes.
    """

    k: tuple[int, ...]
    temperature: float

    def evaluate(self, task: Task, *, seed: int = 0, progress: Progress | None = None) -> Evaluation:
        """See ``EvaluationProtocol``."""
        bank = task.features("train")
        check_finite(bank.features)
        classifier = KNNClassifier(bank, num_classes=task.num_classes)
        queries, labels = labelled_test(task.features("val"), task.num_classes)
        voters = [min(k, len(classifier)) for k in self.k]
        found = []
        for done, block in enumerate(queries.split(QUERIES_PER_REPORT)):
            if progress is not None:
                progress("neighbours", done * QUERIES_PER_REPORT, len(queries))
            found.append(classifier.neighbours(block, max(voters)))
        similarities, neighbours = (torch.cat(blocks) for blocks in zip(*found, strict=True))
        if progress is not None:
            progress("neighbours", len(queries), len(queries))
        outcomes = [
            classification(
                classifier.count(similarities[:, :k], neighbours[:, :k], temperature=self.temperature), labels
            )
            for k in voters
        ]
        scores, confusion = outcomes[0]
        lowered = {"k_lowered_from": self.k[0]} if voters[0] < self.k[0] else {}
        return Evaluation(
            scores=scores,
            num_train=len(classifier),
            num_test=len(labels),
            details={
                "k": voters[0],
                **lowered,
                "scores_by_k": [{"k": k, **by_k} for k, (by_k, _) in zip(voters, outcomes, strict=True)],
            },
            confusion=confusion,
        )


KNN_DINO = KNNProtocol(
    source="Caron et al. 2021, DINO, section 4.1; eval_knn.py of facebookresearch/dino: 10, 20, 100 and 200 "
    "neighbours, votes exp(s / 0.07), 'Number of NN to use. 20 is usually working the best.' "
    "Published numbers are the best of the four on the test images; here 20 is the headline.",
    k=(20, 10, 100, 200),
    temperature=0.07,
)

KNN_LIGHTLY = KNNProtocol(
    source="KNNClassifier of lightly, utils/benchmarking, knn_k=200 and knn_t=0.1; adapted there from MoCo's CIFAR-10 "
    "notebook. The votes are those of Wu et al. 2018, section 3.4.",
    k=(200,),
    temperature=0.1,
)
