"""Runs that survive: whole checkpoints, exact resumption, preemption. For any Lightning script."""

from contrastive.runs.checkpoints import CheckpointError as CheckpointError
from contrastive.runs.checkpoints import WholeCheckpoints as WholeCheckpoints
from contrastive.runs.checkpoints import newest as newest
from contrastive.runs.continuity import Continuity as Continuity
from contrastive.runs.continuity import ContinuityError as ContinuityError
from contrastive.runs.continuity import ContinuityWarning as ContinuityWarning
from contrastive.runs.finite import FiniteLoss as FiniteLoss
from contrastive.runs.finite import NonFiniteError as NonFiniteError
from contrastive.runs.finite import NonFiniteWarning as NonFiniteWarning
from contrastive.runs.last_checkpoint import LastCheckpoint as LastCheckpoint
from contrastive.runs.signals import REQUEUE as REQUEUE
from contrastive.runs.signals import Preempted as Preempted
