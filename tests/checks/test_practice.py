"""What the checks of the exercises about cost and schedule say."""

import pytest
import torch
from torch import tensor

from minippo import checks
from minippo.checks import solutions
from minippo.checks.mistakes import CATALOGUE

pytestmark = pytest.mark.usefixtures("without_hook")


def test_solutions_of_practice_by_hand():
    sizes, learns = tensor([0.5, 2.0]), tensor([True, False])
    assert solutions.training_memory(sizes, learns, weight_bytes=4).tolist() == [8.0, 8.0]
    assert solutions.training_memory(sizes, learns, weight_bytes=2).tolist() == [8.0, 4.0]
    steps = tensor([0.0, 1.0, 2.0, 4.0, 5.0])
    found = solutions.learning_rates(steps, base=1.0, warmup_steps=2, total_steps=4)
    assert found.tolist() == [0.5, 0.75, 0.5, 0.0, 0.0]


def row_by_row(billions, trained, *, weight_bytes):
    each = [16.0 if t and weight_bytes > 1 else 14.0 if t else weight_bytes for t in trained]
    return torch.stack([b * e for b, e in zip(billions, each, strict=True)])


def one_at_a_time(steps, *, base, warmup_steps, total_steps):
    return tensor(
        [
            base * min(1, (s + 1) / warmup_steps) * max(0, 1 - s / total_steps)
            for s in steps.tolist()
        ]
    )


@pytest.mark.parametrize(
    ("name", "mine"), [("training_memory", row_by_row), ("learning_rates", one_at_a_time)]
)
def test_another_right_implementation_of_practice_passes(name, mine):
    result = checks.CHECKS[name](mine)
    assert result.passed, result


def as_people_count(billions, trained, *, weight_bytes):
    return billions * torch.where(trained, weight_bytes + weight_bytes + 8, weight_bytes)


def as_transformers_does(steps, *, base, warmup_steps, total_steps):
    rise = (steps + 1) / warmup_steps
    fall = (total_steps - steps) / max(1, total_steps - warmup_steps)
    return base * rise.clamp(max=1) * fall.clamp(0, 1)


@pytest.mark.parametrize(
    ("name", "mine", "mistake"),
    [
        ("training_memory", as_people_count, "master copy forgotten"),
        ("learning_rates", as_transformers_does, "the fall begins after the warm-up"),
    ],
)
def test_a_wrong_function_of_practice_is_named_as_what_it_is(name, mine, mistake):
    assert checks.CHECKS[name](mine).mistake == mistake


# ---- what the symptoms say -------------------------------------------------------------------


def test_a_small_update_of_a_bfloat16_weight_is_rounded_away():
    weight = torch.ones(1, dtype=torch.bfloat16)
    assert weight + 1 / 512 == weight
    assert weight + 1 / 128 != weight


def test_a_run_past_its_end_undoes_what_it_learned():
    flawed = CATALOGUE["learning_rates"].version(["below zero"])
    assert flawed(tensor([9.0]), base=1.0, warmup_steps=1, total_steps=8).item() < 0
