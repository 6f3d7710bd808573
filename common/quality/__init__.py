"""How good generated images are, on named features."""

from common.quality.accuracy import accuracy_score, score_model
from common.quality.evaluator import NAMES, Evaluator, evaluator_of
from common.quality.result import Classified, Quality

__all__ = [
    "NAMES",
    "Classified",
    "Evaluator",
    "Quality",
    "accuracy_score",
    "evaluator_of",
    "score_model",
]
