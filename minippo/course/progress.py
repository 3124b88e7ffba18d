"""What a student has built so far, on the drawing of one PPO step."""

from collections.abc import Iterable

from minippo import plots
from minippo._validate import fail

# What each lesson adds to the drawing: names of boxes of `plots.PPOStep`.
BUILT: dict[str, tuple[str, ...]] = {
    "00": ("prompts",),
    "01": ("generate", "responses"),
    "02": (),
    "03": ("score",),
    "04": (),
    "05": ("old", "evaluate", "ratio"),
    "06": ("policy loss",),
    "07": ("values", "returns", "value loss"),
    "08": ("advantages",),
    "09": ("entropy",),
    "10": ("reference", "kl", "controller", "rewards"),
    "11": ("loss",),
    "12": ("update",),
}


def progress(lesson: str) -> plots.Shown:
    """Show one PPO step: what lessons 00 to `lesson` build is filled, what is missing is dashed."""
    if lesson not in BUILT:
        fail("progress", "lesson", f"be one of {', '.join(BUILT)}", repr(lesson))
    have = [box for number, boxes in BUILT.items() if number <= lesson for box in boxes]
    missing = [box for box in plots.PPOStep.BOXES if box not in have]
    alt = (
        f"One PPO step in boxes and arrows. After lesson {lesson}, {len(have)} are filled and "
        f"{len(missing)} are dashed."
    )
    caption = f"You have: {_words(have)}. Missing: {_words(missing) or 'nothing'}."
    return plots.show(plots.ppo_step(have=have), alt=alt, caption=caption)


def _words(names: Iterable[str]) -> str:
    """Return what is written in these boxes."""
    boxes = plots.PPOStep.BOXES
    return ", ".join(" ".join(boxes[name].words.split()) for name in boxes if name in names)
