"""How good generated images are, on named features."""

from common.quality.evaluator import NAMES, Classified, Evaluator, Quality, evaluator_of

__all__ = ["NAMES", "Classified", "Evaluator", "Quality", "evaluator_of"]
