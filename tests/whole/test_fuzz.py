"""Whatever the mathematics is given, it answers rightly or raises its own ValueError."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import minippo
from minippo.checks import definitions as slow
from tests.test_validate import GOOD

# Per element, by the definitions; the numbers that a call may carry besides its tensors.
BY_ELEMENT = {
    "probability_ratio": slow.probability_ratio,
    "kl_k1": slow.kl_k1,
    "kl_k2": slow.kl_k2,
    "kl_k3": slow.kl_k3,
    "reinforce_loss": slow.reinforce_loss,
    "penalty_surrogate": slow.penalty_surrogate,
    "sequence_advantages": slow.sequence_advantages,
    "bradley_terry_loss": slow.bradley_terry_loss,
    "dpo_loss": slow.dpo_loss,
}
DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool,
    torch.int64, torch.int32, torch.int8, torch.uint8, torch.complex64,
]  # fmt: skip
CONTENTS = ["small", "small", "large", "inf", "nan", "zero", "constant", "integers"]
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=4)
NUMBERS = st.one_of(
    st.floats(), st.integers(-3, 3), st.sampled_from([10**400, -(10**400), True, None, "1", 1j]),
    st.tuples(st.floats(0, 1), st.floats(0, 3)), st.just(torch.tensor(0.5)),
)  # fmt: skip


def filled(shape: tuple[int, ...], dtype: torch.dtype, content: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if content == "large":
        x = x * 1e30
    elif content in ("inf", "nan"):
        x = torch.where(torch.rand(shape, generator=generator) < 0.3, float(content), x)
    elif content == "zero":
        x = torch.zeros(shape)
    elif content == "constant":
        x = torch.full(shape, 0.1)
    elif content == "integers":
        x = torch.randint(-2, 7, shape, generator=generator).float()
    if not dtype.is_floating_point and not dtype.is_complex:
        x = x.nan_to_num(0.0, 0.0, 0.0).clamp(-99, 99)
    return x.to(dtype)


@st.composite
def calls(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A good call of the function, with some of its arguments replaced or taken away.

    Mostly all tensors get one new batch and time, so that many calls are right ones.
    """
    sizes = {2: draw(st.integers(0, 4)), 3: draw(st.integers(0, 5)), 5: draw(st.integers(0, 6))}
    content, dtype = draw(st.sampled_from(CONTENTS)), draw(st.sampled_from(DTYPES[:4]))
    seed, call = draw(st.integers(0, 99)), {}
    for number, (argument, x) in enumerate(GOOD[name].items()):
        strange = draw(st.integers(0, 9)) == 0
        if not isinstance(x, Tensor):
            call[argument] = draw(NUMBERS) if strange else x
        elif strange:
            if draw(st.booleans()):
                call[argument] = draw(NUMBERS)
            else:
                shape, kind = tuple(draw(SIZES)), draw(st.sampled_from(DTYPES))
                call[argument] = filled(shape, kind, draw(st.sampled_from(CONTENTS)), seed)
        else:
            shape = tuple(sizes[n] for n in x.shape)
            if x.dtype == torch.bool:  # one token, or more, in front, as a rule
                lengths = torch.randint(0, 6, (*shape[:-1], 1)) if shape else torch.ones(1)
                x = torch.arange(shape[-1]) < lengths if shape else torch.tensor(True)
                call[argument] = x
            elif x.dtype == torch.int64:
                call[argument] = torch.randint(0, max(1, sizes[5]), shape)
            else:
                call[argument] = filled(shape, dtype, content, seed + number)
    return call


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_fuzzed_call_gives_the_right_answer_or_a_value_error(name):
    function, answers = getattr(minippo, name), []

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(calls(name))
    def fuzz(call):
        refusal = None
        try:
            answers.append(function(**call))
        except ValueError as error:
            refusal = str(error)
        if refusal is None:
            check(name, call, answers[-1])
        else:
            assert re.fullmatch(rf"{name}: .+ must .+, got .*\.", refusal, re.DOTALL)

    fuzz()
    assert len(answers) >= 5  # it is not all refused


def check(name: str, call: dict[str, Any], answer: Any) -> None:
    """What must hold of every answer: its kind, its shape, and numbers where numbers came in."""
    if not isinstance(answer, Tensor):
        assert isinstance(answer, float)
        assert math.isfinite(answer)
        return
    assert answer.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool)
    tensors = {k: x for k, x in call.items() if isinstance(x, Tensor)}
    first, good = next(iter(tensors)), GOOD[name]
    whole = getattr(minippo, name)(**good)
    gone = good[first].dim() - whole.dim()  # axes that the function sums over
    if name not in ("shape_rewards", "sft_loss") and gone in (0, 1) and whole.dim():
        assert list(answer.shape) == list(tensors[first].shape)[: tensors[first].dim() - gone]
    small = all(x.isfinite().all() and x.abs().max() < 1e3 for x in tensors.values() if x.numel()
                and x.dtype != torch.bool)  # fmt: skip
    if (
        small
        and name != "explained_variance"
        and all(abs(x) < 1e3 for x in call.values() if isinstance(x, int | float))
    ):
        assert not answer.float().isnan().any()
    if name in BY_ELEMENT and small and answer.dtype == torch.float64:
        numbers = [x for x in call.values() if not isinstance(x, Tensor)]
        columns = [x.double().flatten().tolist() for x in tensors.values()]
        for got, *elements in zip(answer.flatten().tolist(), *columns, strict=True):
            expected = BY_ELEMENT[name](*elements, *numbers)
            assert math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-6)


def test_the_fuzz_would_notice(monkeypatch):
    # A function without its checks: what torch raises comes through.
    monkeypatch.setattr(
        minippo, "kl_k1", lambda log_probs, ref_log_probs: log_probs @ ref_log_probs
    )
    with pytest.raises((RuntimeError, TypeError, AssertionError, ExceptionGroup)):
        test_a_fuzzed_call_gives_the_right_answer_or_a_value_error("kl_k1")
