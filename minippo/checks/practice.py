"""Checks of exercises about running PPO: its memory and its learning rate."""

from collections.abc import Iterator

from minippo.checks import definitions, solutions
from minippo.checks.engine.cases import Case, Draw, settings
from minippo.checks.engine.check import Check


def _memory_cases(draw: Draw) -> Iterator[Case]:
    n = draw.vocab  # models: at least two
    for weight_bytes in (4, 2):
        learns = [i % 2 == 0 for i in range(n)]
        sizes = draw.floats(n, low=0.25)
        yield draw.case(billions=sizes, trained=learns, weight_bytes=weight_bytes)
        for note, all_learn in (("every model learns", True), ("no model learns", False)):
            sizes, same = draw.floats(n, low=0.25), [all_learn] * n
            yield draw.case(note, billions=sizes, trained=same, weight_bytes=weight_bytes)
    sizes = draw.floats(n, low=0.25)
    yield draw.case("weights of one byte", billions=sizes, trained=learns, weight_bytes=1)


training_memory = Check(
    reference=solutions.training_memory, definition=definitions.training_memory, cases=_memory_cases
)


def _rate_cases(draw: Draw) -> Iterator[Case]:
    start = draw.random.randrange(4)
    plain = {"base": 0.5, "warmup_steps": 4, "total_steps": 16}
    for keywords in settings(plain, base=0.25, warmup_steps=8, total_steps=64):
        yield draw.case(steps=[float(start + i) for i in range(draw.vocab)], **keywords)
    for note, steps, warmup in (
        ("the first steps", [0.0, 1.0, 2.0, 3.0], 4),
        ("the last steps, and beyond", [6.0, 7.0, 8.0, 9.0, 12.0], 4),
        ("a warm-up of one step is none", [0.0, 1.0, 4.0], 1),
    ):
        base = draw.number(low=0.25)
        yield draw.case(note, steps=steps, base=base, warmup_steps=warmup, total_steps=8)


learning_rates = Check(
    reference=solutions.learning_rates, definition=definitions.learning_rates, cases=_rate_cases
)
