"""The course: what its lessons share, and its demo."""

from minippo.course.progress import progress

__all__ = ["progress"]
