"""Protocols by the names that the field reports them under."""

from contrastive.evaluation.protocols.few_label import FEW_LABEL
from contrastive.evaluation.protocols.knn import KNN_DINO, KNN_LIGHTLY
from contrastive.evaluation.protocols.linear import LDA, LINEAR, RIDGE, SIMCLR_TRANSFER
from contrastive.evaluation.protocols.protocol import AugmentedBatch as AugmentedBatch
from contrastive.evaluation.protocols.protocol import Evaluation as Evaluation
from contrastive.evaluation.protocols.protocol import EvaluationProtocol as EvaluationProtocol
from contrastive.evaluation.protocols.protocol import Progress as Progress
from contrastive.evaluation.protocols.protocol import Task as Task
from contrastive.evaluation.protocols.protocol import classification as classification
from contrastive.evaluation.protocols.sgd import BYOL, DINOV2, MAE, MOCO_V2, MOCO_V3, MOCO_V3_VIT, SIMCLR_SGD
from contrastive.evaluation.protocols.sgd import SGDProtocol as SGDProtocol
from contrastive.evaluation.protocols.unsupervised import CLUSTER, LABEL_FREE, RETRIEVAL

PROTOCOLS: dict[str, EvaluationProtocol] = {
    "linear": LINEAR,
    "simclr-transfer": SIMCLR_TRANSFER,
    "knn-dino": KNN_DINO,
    "knn-lightly": KNN_LIGHTLY,
    "few-label": FEW_LABEL,
    "lda": LDA,
    "ridge": RIDGE,
    "cluster": CLUSTER,
    "retrieval": RETRIEVAL,
    "label-free": LABEL_FREE,
    "simclr-sgd": SIMCLR_SGD,
    "moco-v2": MOCO_V2,
    "moco-v3": MOCO_V3,
    "moco-v3-vit": MOCO_V3_VIT,
    "byol": BYOL,
    "dinov2": DINOV2,
    "mae": MAE,
}
