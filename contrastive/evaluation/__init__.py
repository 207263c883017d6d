"""What can be said of an encoder's features: with labels (linear, nearest neighbours) and without."""

from contrastive.evaluation.features import Features as Features
from contrastive.evaluation.features import check_unique as check_unique
from contrastive.evaluation.features import eval_mode as eval_mode
from contrastive.evaluation.features import extract_features as extract_features
from contrastive.evaluation.knn import KNNClassifier as KNNClassifier
from contrastive.evaluation.knn import KNNResult as KNNResult
from contrastive.evaluation.knn import top_hits as top_hits
from contrastive.evaluation.linear import LinearEvaluation as LinearEvaluation
from contrastive.evaluation.linear import NotConvergedWarning as NotConvergedWarning
from contrastive.evaluation.linear import linear_evaluation as linear_evaluation
from contrastive.evaluation.linear import stratified_split as stratified_split
from contrastive.evaluation.logistic import LogisticSolutions as LogisticSolutions
from contrastive.evaluation.logistic import LogisticSweep as LogisticSweep
from contrastive.evaluation.online import LinearHeads as LinearHeads
from contrastive.evaluation.ranks import from_rank_zero as from_rank_zero
from contrastive.evaluation.ranks import gather_rows as gather_rows
from contrastive.evaluation.ranks import sum_over_ranks as sum_over_ranks
from contrastive.evaluation.representation import alignment as alignment
from contrastive.evaluation.representation import effective_rank as effective_rank
from contrastive.evaluation.representation import feature_std as feature_std
from contrastive.evaluation.representation import uniformity as uniformity
