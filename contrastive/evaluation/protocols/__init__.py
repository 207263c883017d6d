"""Protocols by the names that the field reports them under."""

from contrastive.evaluation.protocols.protocol import AugmentedBatch as AugmentedBatch
from contrastive.evaluation.protocols.protocol import Evaluation as Evaluation
from contrastive.evaluation.protocols.protocol import EvaluationProtocol as EvaluationProtocol
from contrastive.evaluation.protocols.protocol import Progress as Progress
from contrastive.evaluation.protocols.protocol import Task as Task
from contrastive.evaluation.protocols.protocol import classification as classification

PROTOCOLS: dict[str, EvaluationProtocol] = {}
