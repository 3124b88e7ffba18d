"""How often a test repeats what must hold every time, and how long it waits for what must come."""

import os
import time
from collections.abc import Callable


def soak(few: int, many: int) -> int:
    """`few`, or `many` where MINIPPO_SOAK is set (`make soak`)."""
    return many if os.environ.get("MINIPPO_SOAK") else few


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread or process; two minutes, which nothing takes, fail the test."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
