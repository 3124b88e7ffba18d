"""What a lesson is made of: start, the student's file, texts by key, progress."""

from minippo.course.mine import FUNCTIONS, minippos, whose
from minippo.course.progress import progress
from minippo.course.size import fewer, rounding
from minippo.course.start import start
from minippo.course.told import reveal, show

# The answer that is carried through all lessons: one word harms it, one helps.
STORY = (
    "Last week we visited the new tavern behind the market.",
    " The waiter was a little grumpy, but the ham was heavenly. It was worth every penny.",
)

__all__ = [
    "FUNCTIONS", "STORY", "fewer", "minippos", "progress", "reveal", "rounding", "show", "start",
    "whose",
]  # fmt: skip
