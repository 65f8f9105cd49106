"""Teachers of pre-training: what says what masked patches are to become."""

from __future__ import annotations

from .base import Teacher
from .clip import ClipTeacher
from .efficientnet_lite import EfficientNetLiteTeacher
from .features import FeatureTeacher
from .moving_average import MovingAverageTeacher
from .simple import HogTeacher, PixelTeacher, RandomTeacher

# Teachers that need no settings, by the names that `teacher` takes in place of a config.
NAMES = {
    'clip': 'ClipTeacher',
    'hog': 'HogTeacher',
    'moving_average': 'MovingAverageTeacher',
    'pixels': 'PixelTeacher',
    'random': 'RandomTeacher',
}

__all__ = [
    'NAMES',
    'ClipTeacher',
    'EfficientNetLiteTeacher',
    'FeatureTeacher',
    'HogTeacher',
    'MovingAverageTeacher',
    'PixelTeacher',
    'RandomTeacher',
    'Teacher',
]
