"""Lessons ask less of a large model, and allow for its rounding."""

import pytest
import torch
from torch import nn

from minippo import course
from minippo.models import load_policy


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(60, 1_000, 60), (60, 4_000_000, 60), (60, 40_000_000, 6), (60, 10**9, 2), (1, 10**9, 1)],
)
def test_a_lesson_asks_less_of_a_large_model(n, size, expected):
    with torch.device("meta"):
        policy = nn.Linear(size, 1, bias=False)
    assert course.fewer(n, policy) == expected


def test_rounding_grows_with_the_layers_and_with_coarser_weights():
    policy, _ = load_policy("tiny-gpt2-sft")
    assert course.rounding(policy) == pytest.approx(100 * 2**-23 * 4)
    assert course.rounding(policy.bfloat16()) == pytest.approx(100 * 2**-7 * 4)
