"""What users call: predictions for images and videos."""

from .predictor import Predictor
from .results import Result

__all__ = ['Predictor', 'Result']
