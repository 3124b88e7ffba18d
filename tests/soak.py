"""How often a test repeats what must hold every time: few times in CI, many in `make soak`."""

import os


def soak(few: int, many: int) -> int:
    """`few`, or `many` where MINIPPO_SOAK is set."""
    return many if os.environ.get("MINIPPO_SOAK") else few
