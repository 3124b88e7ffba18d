import doctest
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, tensor
from torch.testing import assert_close

import minippo
from minippo._validate import (
    check_mask,
    check_number,
    check_response_mask,
    check_tokens,
    checked,
    checked_at_the_door,
    upcast,
)
from tests.shapes import refuses

INF, NAN = float("inf"), float("nan")

# One good call of each public function: its arguments by name.
B, T, V = 2, 3, 5
MASK = tensor([[True, True, True], [True, False, False]])


def row() -> Tensor:
    return -torch.rand(B)


def grid() -> Tensor:
    return -torch.rand(B, T)


def cube() -> Tensor:
    return torch.randn(B, T, V)


def good_calls() -> dict[str, dict[str, Any]]:
    tokens, mask = torch.randint(V, (B, T)), MASK.clone()
    past = {"rewards": grid(), "values": grid(), "mask": mask, "gamma": 0.9, "bootstrap": row()}
    band = {"ratio": grid().exp(), "advantages": grid(), "clip_range": 0.2, "dual_clip": 3.0}
    kl = {"log_probs": grid(), "ref_log_probs": grid()}
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    return {
        "token_log_probs": {"logits": cube(), "tokens": tokens, "temperature": 0.7},
        "sequence_log_prob": {"log_probs": grid(), "mask": mask},
        "entropy": {"logits": cube(), "temperature": 0.7},
        "masked_mean": {"x": grid(), "mask": mask},
        "masked_var": {"x": grid(), "mask": mask},
        "response_mean": {"x": grid(), "mask": mask},
        "whiten": {"x": grid(), "mask": mask},
        "shape_rewards": {"scores": row(), "kl": grid(), "mask": mask, "kl_coef": 0.1},
        "discounted_sum": {"x": grid(), "discount": 0.9},
        "td_errors": past,
        "gae": past | {"lam": 0.95},
        "length_adaptive_lambda": {"mask": mask, "alpha": 1.0},
        "monte_carlo_returns": {"rewards": grid(), "mask": mask, "gamma": 0.9},
        "sequence_advantages": {"scores": row(), "values": row()},
        "explained_variance": {"values": grid(), "returns": grid(), "mask": mask},
        "probability_ratio": {"log_probs": grid(), "old_log_probs": grid()},
        "clipped_surrogate": band,
        "clip_is_active": band,
        "penalty_surrogate": {"ratio": grid(), "advantages": grid(), "kl": grid(), "coef": 1.0},
        "value_loss": {
            "values": grid(),
            "returns": grid(),
            "old_values": grid(),
            "clip_range": 0.2,
        },
        "bradley_terry_loss": {"chosen": row(), "rejected": row(), "margin": 0.1},
        "sft_loss": {"logits": cube(), "tokens": tokens, "mask": mask},
        "reinforce_loss": {"log_probs": grid(), "advantages": grid()},
        "kl_k1": kl,
        "kl_k2": kl,
        "kl_k3": kl,
        "exact_kl": {"logits": cube(), "ref_logits": cube(), "temperature": 0.7},
        "dpo_loss": {name: row() for name in names} | {"beta": 0.1},
        "group_advantages": {"scores": grid()},
        "leave_one_out_advantages": {"scores": grid()},
        "best_of_n_kl": {"n": 4},
    }


GOOD = good_calls()
CONTROLLERS = {"FixedKL", "AdaptiveKL", "PenaltyKL"}


def tensors_of(name: str) -> dict[str, Tensor]:
    return {argument: x for argument, x in GOOD[name].items() if isinstance(x, Tensor)}


def call(name: str, **changes: Any) -> Any:
    return getattr(minippo, name)(**GOOD[name] | changes)


# ---- every public function


def test_the_table_of_good_calls_is_complete():
    assert set(GOOD) | CONTROLLERS == set(minippo.__all__)
    assert minippo.__all__ == sorted(minippo.__all__)
    for name in ("log_probs", "masking", "advantages", "losses", "kl", "alternatives"):
        module = getattr(minippo, name)
        for public, thing in vars(module).items():
            if getattr(thing, "__module__", "") == module.__name__ and public[0] != "_":
                assert getattr(minippo, public) is thing


@pytest.mark.parametrize("name", minippo.__all__)
def test_every_public_name_is_annotated_and_documented_by_example(name):
    thing = getattr(minippo, name)
    for function in [thing, thing.update] if name in CONTROLLERS else [thing]:
        signature = inspect.signature(function)
        for parameter in signature.parameters.values():
            assert parameter.name == "self" or parameter.annotation is not inspect.Parameter.empty
        assert (
            inspect.isclass(function) or signature.return_annotation is not inspect.Parameter.empty
        )
        assert len(function.__doc__.splitlines()[0]) > 10
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    assert test.examples


@pytest.mark.parametrize("name", sorted(GOOD))
def test_inputs_are_neither_modified_nor_handed_back(name):
    arguments = good_calls()[name]
    tensors = {a: x for a, x in arguments.items() if isinstance(x, Tensor)}
    before = {a: x.clone() for a, x in tensors.items()}
    result = getattr(minippo, name)(**arguments)
    for argument, x in tensors.items():
        assert torch.equal(x, before[argument])
        assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", sorted(GOOD))
def test_an_argument_that_is_no_tensor_is_refused(name):
    for argument, x in tensors_of(name).items():
        for bad in (x.tolist(), x.numpy(), 1.0):
            with refuses(f"{name}: {argument}", type(bad).__name__):
                call(name, **{argument: bad})


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("name", sorted(GOOD))
def test_none_is_refused_where_a_tensor_is_required(name):
    for argument in tensors_of(name).keys() - {"bootstrap", "old_values"}:
        with refuses(f"{name}: {argument}", "NoneType"):
            call(name, **{argument: None})


def test_none_is_a_choice_where_the_signature_says_so():
    call("td_errors", bootstrap=None)
    call("gae", bootstrap=None)
    call("value_loss", old_values=None, clip_range=None)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_tensor_of_another_dtype_is_refused(name):
    for argument, x in tensors_of(name).items():
        for bad in (x.long() if x.dtype == torch.bool else x.bool(), x.to(torch.complex64)):
            with refuses(f"{name}: {argument}", f"{str(bad.dtype)[6:]} {list(bad.shape)}"):
                call(name, **{argument: bad})


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("name", sorted(GOOD))
def test_floats_that_torch_only_stores_are_refused(name):
    for argument, x in tensors_of(name).items():
        if x.is_floating_point():
            with refuses(f"{name}: {argument}", f"float8_e4m3fn {list(x.shape)}"):
                call(name, **{argument: x.to(torch.float8_e4m3fn)})


@pytest.mark.parametrize("name", [n for n in sorted(GOOD) if len(tensors_of(n)) > 1])
def test_shapes_that_torch_would_broadcast_are_refused(name):
    # One row for all. The first argument sets the sizes, so the second is then the one that is off.
    first, second, *_ = tensors_of(name)
    for argument, x in tensors_of(name).items():
        blamed, came = (second, GOOD[name][second]) if argument == first else (argument, x[:1])
        with refuses(f"{name}: {blamed}", f"{str(came.dtype)[6:]} {list(came.shape)}"):
            call(name, **{argument: x[:1]})


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_number_that_is_not_finite_is_refused(name):
    for argument in [a for a, x in GOOD[name].items() if isinstance(x, float)]:
        for bad in (NAN, INF, -INF, 10**400, True, "0.5", tensor(0.5)):
            with pytest.raises(
                ValueError, match=rf"^{name}: {argument} must (be a [nt]|lie in).*got"
            ):
                call(name, **{argument: bad})


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("bad", [2.0, "2", True, None, 0])
def test_best_of_n_needs_a_whole_number(bad):
    with refuses("best_of_n_kl: n", repr(bad)):
        call("best_of_n_kl", n=bad)


@pytest.mark.parametrize("name", [n for n in sorted(GOOD) if "mask" in GOOD[n]])
def test_a_mask_without_a_token_is_refused(name):
    with pytest.raises(ValueError, match=": mask must hold at least one"):
        call(name, mask=torch.zeros(B, T).bool())


@pytest.mark.parametrize("name", sorted(GOOD))
def test_keywords_are_needed_where_numbers_follow_tensors(name):
    shown = {"discounted_sum", "best_of_n_kl", "clipped_surrogate", "clip_is_active"}
    for parameter in inspect.signature(getattr(minippo, name)).parameters.values():
        if parameter.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD:
            x = GOOD[name][parameter.name]
            assert isinstance(x, Tensor) or name in shown


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("name", sorted(GOOD))
def test_the_checks_of_readers_do_without_the_hook(name):
    result = call(name)
    assert isinstance(result, float) or result.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(GOOD))
def test_half_precision_is_that_of_the_upcast_numbers_everywhere(name, half):
    rounded = {a: x.to(half) for a, x in tensors_of(name).items() if x.is_floating_point()}
    got = call(name, **rounded)
    assert_close(got, call(name, **{a: x.float() for a, x in rounded.items()}), rtol=0, atol=0)
    # Positional, and inside an update, where nothing is checked, too.
    arguments = GOOD[name] | rounded
    tensors = [x for x in arguments.values() if isinstance(x, Tensor)]
    numbers = {a: x for a, x in arguments.items() if not isinstance(x, Tensor)}
    positional = {"clipped_surrogate", "clip_is_active"}  # their number has no keyword of its own
    with checked_at_the_door():
        if name not in positional | {"value_loss", "td_errors", "gae"}:
            assert_close(getattr(minippo, name)(*tensors, **numbers), got, rtol=0, atol=0)


def test_the_tests_enforce_the_annotations():
    # See conftest.py: beartype refuses what nothing else looks at.
    with pytest.raises(TypeError):
        check_mask(1, MASK)


# ---- checked


@checked
def example(
    x: Float[Tensor, "batch time"],
    ids: Int[Tensor, " batch"] | None = None,
    last: Bool[Tensor, "*shape time"] | None = None,
    *,
    scale: float = 1.0,
) -> float:
    """Have a docstring."""
    return scale


def test_a_call_that_fits_its_annotations_passes():
    x = torch.zeros(2, 3)
    assert example(x) == 1.0
    assert example(x, torch.zeros(2).int(), scale=2.0) == 2.0
    assert example(x, last=torch.zeros(7, 5, 3).bool()) == 1.0
    assert example(x, last=torch.zeros(3).bool()) == 1.0
    assert example(x=x.half(), ids=None) == 1.0


def test_checked_keeps_name_and_signature():
    assert example.__name__ == "example"
    assert example.__doc__ == "Have a docstring."
    assert list(inspect.signature(example).parameters) == ["x", "ids", "last", "scale"]


def message(f: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"^example: ") as error:
        f()
    return str(error.value)


def test_a_message_says_what_must_be_and_what_came():
    x = torch.zeros(2, 3)
    assert message(lambda: example(x[0])) == (
        "example: x must be a tensor float [batch time], got float32 [3]."
    )
    assert message(lambda: example(x, torch.zeros(4).long())) == (
        "example: ids must be a tensor int [batch] with batch = 2, time = 3, got int64 [4]."
    )
    assert message(lambda: example(x, last=torch.zeros(2, 4).bool())) == (
        "example: last must be a tensor bool [*shape time] with batch = 2, time = 3,"
        " got bool [2, 4]."
    )
    assert message(lambda: example(x, last=tensor(True))).endswith("got bool [].")


def test_a_choice_of_shapes_is_spelt_out():
    with pytest.raises(ValueError, match=r"float \[batch\] or float \[batch time\], got float32 "):
        call("shape_rewards", scores=torch.zeros(2, 3, 1))


def test_sizes_of_one_call_do_not_bind_the_next():
    for n in (1, 2, 3):
        example(torch.zeros(n, n + 1), torch.zeros(n).long())


# ---- the other checks


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(
    ("value", "low", "high", "above", "must"),
    [
        (1.5, 0, 1, False, "lie in [0, 1]"),
        (-0.5, 0, INF, False, "lie in [0, inf)"),
        (0, 0, INF, True, "lie in (0, inf)"),
        (1, 1, 2, True, "lie in (1, 2]"),
        (NAN, 0, 1, False, "lie in [0, 1]"),
        (INF, 0, INF, False, "lie in [0, inf)"),
        (-INF, -INF, INF, False, "lie in [-inf, inf)"),
        (False, 0, 1, False, "be a number"),
        (None, 0, 1, False, "be a number"),
        ([1], 0, 1, False, "be a number"),
    ],
)
def test_check_number_refuses_a_number_out_of_range(value, low, high, above, must):
    with pytest.raises(ValueError, match=r"^f: x must ") as error:
        check_number("f", low, high, above=above, x=value)
    assert str(error.value) == f"f: x must {must}, got {value}."


def test_check_number_takes_the_edges_and_any_real_type():
    check_number("f", 0, 1, a=0, b=1, c=0.5, d=np.float64(1.0))
    check_number("f", 0, 1, above=True, a=1e-300, b=1)
    check_number("f", -INF, a=-1e300, b=1e300)


def test_check_number_looks_at_each_value():
    with refuses("f: b", "2"):
        check_number("f", 0, 1, a=1, b=2)


def test_check_mask_needs_one_token():
    check_mask("f", tensor([False, True]))
    with refuses("f: mask", "none in shape [2]"):
        check_mask("f", tensor([False, False]))


@pytest.mark.parametrize("rows", [[[1]], [[1, 0], [1, 1]], [[1, 1, 0, 0], [1, 0, 0, 0]]])
def test_runs_of_ones_then_zeros_pass(rows):
    check_response_mask("f", tensor(rows).bool())
    check_response_mask("f", torch.zeros(0, 3).bool())


@pytest.mark.parametrize(
    ("rows", "came"),
    [
        ([[0]], "none in row 0"),
        ([[1, 0], [0, 1]], "none in row 1"),
        ([[1, 0, 1]], "101 in row 0"),
        ([[1, 1, 1, 0], [1, 1, 0, 1]], "1101 in row 1"),
        ([[1] * 50 + [0, 1]], "1" * 40 + " in row 0"),
    ],
)
def test_other_response_masks_are_shown(rows, came):
    with refuses("f: mask", came):
        check_response_mask("f", tensor(rows).bool())


def test_check_tokens_names_the_first_id_outside_the_vocabulary():
    check_tokens("f", tensor([[0, 4]]), 5)
    check_tokens("f", torch.zeros(0, 2).long(), 5)
    with pytest.raises(ValueError, match=r"^f: tokens must lie in \[0, 4\], got 5\.$"):
        check_tokens("f", tensor([[0, 5]]), 5)
    with pytest.raises(ValueError, match=r"^f: tokens must lie in \[0, 4\], got -1\.$"):
        check_tokens("f", tensor([[-1, 9]]), 5)


def test_contents_of_a_tensor_on_an_accelerator_are_not_checked():
    # The meta device has no contents, and stands for any device that is not the CPU.
    away = torch.device("meta")
    check_mask("f", torch.zeros(2, 2, device=away).bool())
    check_response_mask("f", torch.zeros(2, 2, device=away).bool())
    check_tokens("f", torch.zeros(2, 2, device=away).long(), 0)
    for name in set(GOOD) - {"best_of_n_kl"}:
        call(name, **{argument: x.to(away) for argument, x in tensors_of(name).items()})


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_upcast_raises_half_precision_alone(kind, result):
    got = upcast(tensor([0.1], dtype=kind))
    assert got.dtype == result
    assert math.isclose(got.item(), 0.1, rel_tol=0.01)
    assert_close(got.to(kind), tensor([0.1], dtype=kind))
