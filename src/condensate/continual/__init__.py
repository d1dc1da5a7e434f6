"""Continual learning with condensed memory: experiences, memories and what is measured.

The words are those of Avalanche: a *stream* is a sequence of *experiences*, each with some classes; *replay* trains
on what is remembered of earlier ones beside what is new.
"""

from condensate.continual.experiences import Experience, Stream, class_order, split_stream
from condensate.continual.memory import Reservoir, Union, keep_first, load_memory, save_memory
from condensate.continual.metrics import average_incremental_accuracy, forgetting
from condensate.continual.options import ContinualOptions

__all__ = [
    "ContinualOptions",
    "Experience",
    "Reservoir",
    "Stream",
    "Union",
    "average_incremental_accuracy",
    "class_order",
    "forgetting",
    "keep_first",
    "load_memory",
    "save_memory",
    "split_stream",
]
