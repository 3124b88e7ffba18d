"""Checks of exercises whose solutions minippo does not use itself."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy
import torch

import minippo
from minippo.checks import definitions, solutions
from minippo.checks.engine.cases import Case, Draw, Nested, settings
from minippo.checks.engine.check import Check
from minippo.checks.log_probs import LARGE


def _ensemble_cases(draw: Draw) -> Iterator[Case]:
    size = (draw.vocab, draw.time)  # members, responses: never equal in number
    for coef in (0.5, 2.0):
        for _ in range(2):
            yield draw.case(scores=draw.floats(*size), coef=coef)
    yield draw.case("the variance costs nothing", scores=draw.floats(*size), coef=0.0)
    near = draw.floats(*size, low=-0.25, high=0.25)
    yield draw.case("members that nearly agree", scores=near, coef=1.0)
    yield draw.case("all members agree", scores=[draw.floats(draw.time)] * draw.vocab, coef=1.0)
    yield draw.case("a single member", scores=draw.floats(1, draw.time), coef=1.0)


mean_minus_variance = Check(
    reference=solutions.mean_minus_variance,
    definition=definitions.mean_minus_variance,
    cases=_ensemble_cases,
)


def _calibration_cases(draw: Draw) -> Iterator[Case]:
    far = [0.25, -0.75, 1.5, -3.5, *draw.floats(draw.time * draw.vocab)]  # each bin has a pair
    edges = [0.625, 0.75, 0.875]
    for _ in range(3):
        won = [float(draw.random.randrange(2)) for _ in far]
        yield draw.case(difference=far, first_won=won, edges=edges)
    share = draw.floats(len(far), low=0.0, high=1.0)
    yield draw.case("several annotators", difference=far, first_won=share, edges=edges)
    yield draw.case("one bin", difference=far, first_won=won, edges=[])
    tied = [0.0, *far[1:], 0.0]
    yield draw.case("with ties", difference=tied, first_won=[1.0, *won], edges=edges)
    yield draw.case("empty bins", difference=far, first_won=won, edges=[0.75, 0.98, 0.99])


calibration = Check(
    reference=solutions.calibration, definition=definitions.calibration, cases=_calibration_cases
)


def _ratio_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(3):
        yield draw.case(log_probs=draw.log_probs(), old_log_probs=draw.log_probs(), mask=draw.mask)
    same = draw.log_probs()
    yield draw.case("the same policy", log_probs=same, old_log_probs=same, mask=draw.mask)
    # As unlikely as a long response: float32 represents no probability below exp(-103).
    far = [draw.token_floats(-128.0, -127.0) for _ in range(2)]
    yield draw.case(
        "far from likely", robust=True,
        log_probs=far[0], old_log_probs=far[1], mask=draw.mask,
    )  # fmt: skip
    yield draw.case(
        "in half precision", dtype="bfloat16", slopes=False,
        log_probs=draw.log_probs(), old_log_probs=draw.log_probs(), mask=draw.mask,
    )  # fmt: skip


sequence_ratio = Check(
    reference=solutions.sequence_ratio,
    definition=definitions.sequence_ratio,
    cases=_ratio_cases,
    slopes=("log_probs",),
    no_slopes=("old_log_probs",),
)


def _weight_cases(draw: Draw) -> Iterator[Case]:
    n = draw.vocab
    for _ in range(3):
        yield draw.case(log_ratios=draw.floats(n))
    yield draw.case("all as likely as before", log_ratios=[0.0] * n)
    yield draw.case("one response", log_ratios=draw.floats(1))
    yield draw.case("one counts alone", log_ratios=[8.0, *draw.floats(n)])
    for far in (60.0, -60.0):  # float32 holds exp(60), but not its square
        away = [far + x for x in draw.floats(n)]
        yield draw.case(f"log-ratios near {far:.0f}", robust=True, log_ratios=away)


effective_sample_size = Check(
    reference=solutions.effective_sample_size,
    definition=definitions.effective_sample_size,
    cases=_weight_cases,
)


def _entropy_cases(draw: Draw) -> Iterator[Case]:
    # A model's logits on padding are finite: no gradient is checked where they are NaN.
    slopes = draw.padding != "junk"
    for _ in range(2):
        yield draw.case(slopes=slopes, logits=draw.tokens_of(draw.logits()), mask=draw.mask)
    ruled_out = draw.logits()
    ruled_out[0][0][0] = -math.inf
    inputs = {"logits": draw.tokens_of(ruled_out), "mask": draw.mask}
    if draw.time == 1:
        yield draw.case(LARGE, robust=True, slopes=False, logits=[[[0.0] * 50257]], mask=draw.mask)
    yield draw.case("a token ruled out", robust=True, slopes=slopes, **inputs)
    yield draw.case(
        "in half precision", dtype="bfloat16", slopes=False,
        logits=draw.tokens_of(draw.logits()), mask=draw.mask,
    )  # fmt: skip


entropy_bonus = Check(
    reference=solutions.entropy_bonus,
    definition=definitions.entropy_bonus,
    cases=_entropy_cases,
    slopes=("logits",),
)

PARTS = ("policy_loss", "value_loss", "entropy", "kl")


def _call_parts(function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Pass the parts as scalar tensors; a case stores each as a list of one number."""
    weights = {name: x for name, x in inputs.items() if name not in PARTS}
    return function(*(inputs[name][0] for name in PARTS), **weights)


def _combined(
    policy_loss: Nested, value_loss: Nested, entropy: Nested, kl: Nested, **weights: float
) -> float:
    parts = (policy_loss[0], value_loss[0], entropy[0], kl[0])
    return definitions.combined_loss(*parts, **weights)


def _combined_cases(draw: Draw) -> Iterator[Case]:
    for weights in [
        {"c1": 0.0, "c2": 0.0, "c3": 0.0},
        *settings({"c1": 0.5, "c2": 0.25, "c3": 2.0}, c1=0.125, c2=1.5, c3=0.75),
    ]:
        yield draw.case(**{name: draw.floats(1, low=0.25) for name in PARTS}, **weights)
    bad = {name: draw.floats(1, low=0.25) for name in PARTS} | {"policy_loss": [-1.5]}
    yield draw.case("a policy loss below 0", **bad, c1=0.5, c2=0.25, c3=2.0)


combined_loss = Check(
    reference=solutions.combined_loss,
    definition=_combined,
    cases=_combined_cases,
    slopes=PARTS,
    call=_call_parts,
)


def _optimum_cases(draw: Draw) -> Iterator[Case]:
    n = draw.vocab

    def reference() -> list[float]:
        return definitions.log_softmax(draw.floats(n))

    for beta in (0.5, 2.0, 0.125):
        yield draw.case(ref_log_probs=reference(), rewards=draw.floats(n), beta=beta)
    yield draw.case("equal rewards", ref_log_probs=reference(), rewards=[1.5] * n, beta=0.5)
    yield draw.case("hardly any reward", ref_log_probs=reference(), rewards=draw.floats(n), beta=64)
    # Integers over a power of 2: exact in float32, and far beyond the range of exp.
    far = [float(r) for r in draw.random.sample(range(1 - n, n), n)]
    yield draw.case(
        "rewards / beta of 1000", robust=True,
        ref_log_probs=reference(), rewards=far, beta=2**-9,
    )  # fmt: skip
    never = [-math.inf, *definitions.log_softmax(draw.floats(n - 1))]
    yield draw.case(
        "a response that the reference never gives", robust=True,
        ref_log_probs=never, rewards=draw.floats(n), beta=0.5,
    )  # fmt: skip


optimal_policy = Check(
    reference=solutions.optimal_policy, definition=definitions.optimal_policy, cases=_optimum_cases
)


def _truth_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(3):
        yield draw.case(scores=draw.floats(draw.time + 1, draw.vocab))
    ended = [draw.floats()] * draw.vocab
    yield draw.case("nothing left to sample", scores=[*draw.floats(draw.time, draw.vocab), ended])


token_truth = Check(
    reference=solutions.token_truth, definition=definitions.token_truth, cases=_truth_cases
)


def _accumulated_cases(draw: Draw) -> Iterator[Case]:
    def parts(low: float = -2.0) -> dict[str, Nested]:
        """Draw `vocab` micro-batches, each with different lengths."""
        drawn, masks = list[Nested](), list[Nested]()
        for _ in range(draw.vocab):
            lengths = [draw.random.randint(1, draw.time) for _ in range(draw.batch)]
            draw.mask = [[t < length for t in range(draw.time)] for length in lengths]
            masks.append(draw.mask)
            drawn.append(draw.token_floats(low))
        return {"losses": drawn, "mask": masks}

    for _ in range(3):
        yield draw.case(**parts())
    yield draw.case("losses above 0", **parts(low=0.25))
    one = {name: x[:1] for name, x in parts().items()}
    yield draw.case("one micro-batch", **one)


accumulated_loss = Check(
    reference=solutions.accumulated_loss,
    definition=definitions.accumulated_loss,
    cases=_accumulated_cases,
    slopes=("losses",),
)


def _error_cases(draw: Draw) -> Iterator[Case]:
    for _ in range(3):
        yield draw.case(
            slopes=False,
            log_probs=draw.log_probs(), old_log_probs=draw.log_probs(), mask=draw.mask,
        )  # fmt: skip
    same = draw.log_probs()
    yield draw.case(
        "the same policy", slopes=False, log_probs=same, old_log_probs=same, mask=draw.mask
    )
    size = (draw.batch, draw.time)
    written = [draw.floats(*size, low=-3.0, high=-0.0625) for _ in range(2)]
    yield draw.case(
        "what the models say of padding", slopes=False,
        log_probs=written[0], old_log_probs=written[1], mask=draw.mask,
    )  # fmt: skip
    low, high = draw.token_floats(-3.0, -2.0), draw.token_floats(-1.5, -0.5)
    yield draw.case(
        "less likely, every token", slopes=False,
        log_probs=low, old_log_probs=high, mask=draw.mask,
    )  # fmt: skip
    yield draw.case(
        "in half precision", dtype="bfloat16", slopes=False,
        log_probs=draw.log_probs(), old_log_probs=draw.log_probs(), mask=draw.mask,
    )  # fmt: skip


first_ratio_error = Check(
    reference=solutions.first_ratio_error,
    definition=definitions.first_ratio_error,
    cases=_error_cases,
)


def _in_order(run: Callable[[], Any]) -> Any:
    """Call it with rows unshuffled: a mistake that depends on their order is then still known."""
    torch_order, order = patch("torch.randperm", torch.arange), patch("random.shuffle")
    numpy_order = patch("numpy.random.permutation", numpy.arange)
    with torch_order, order, numpy_order, torch.random.fork_rng(devices=[]):
        try:
            return run()
        except RuntimeError as error:
            if "a second time" in str(error):
                says = "backward met numbers that were measured before the last step"
                raise RuntimeError(f"{says}: measure again for each minibatch") from None
            raise


def _trained(inputs: dict[str, Any], run: Callable[..., Any]) -> tuple[Any, Any]:
    """Train a table of logits by plain gradient descent; return it, and what `run` returned."""
    table = inputs["logits"].clone().requires_grad_()
    asked = list[Any]()

    def logits_of(rows: Any) -> torch.Tensor:
        asked.append(rows)
        return table[torch.arange(len(inputs["mask"]))[rows] % len(table)]

    said = _in_order(lambda: run(logits_of, torch.optim.SGD([table], lr=inputs["learning_rate"])))
    return table.detach() if asked else ..., said


def _call_epochs(function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Return the table of logits after some epochs of PPO."""

    def run(logits_of: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        function(
            lambda rows: minippo.token_log_probs(logits_of(rows), inputs["tokens"][rows]),
            partial(minippo.clipped_surrogate, clip_range=inputs["clip_range"]), optimizer,
            inputs["old_log_probs"], inputs["advantages"], inputs["mask"],
            epochs=inputs["epochs"], minibatch_size=inputs["minibatch_size"],
        )  # fmt: skip

    return _trained(inputs, run)[0]


def _epochs_cases(draw: Draw) -> Iterator[Case]:
    if draw.padding != "numbers" or draw.batch * draw.time * draw.vocab > 40 or draw.batch == 1:
        return
    plain: dict[str, Any] = {"epochs": 2, "minibatch_size": draw.batch, "clip_range": 0.2}
    changes: dict[str, dict[str, Any]] = {
        "two epochs": {},
        "one epoch": {"epochs": 1},
        "three epochs": {"epochs": 3},
        "one response per minibatch": {"minibatch_size": 1},
        "another epsilon": {"clip_range": 0.1},
    }
    if draw.batch > 2:
        changes["a shorter last minibatch"] = {"minibatch_size": draw.batch - 1}
    for note, change in changes.items():
        logits, tokens = draw.logits(), draw.tokens()
        yield draw.case(
            note, logits=logits, tokens=tokens, mask=draw.mask,
            old_log_probs=definitions.token_log_probs(logits, tokens),
            advantages=draw.floats(draw.batch, draw.time),
            **(plain | change), learning_rate=4.0,
        )  # fmt: skip


ppo_epochs = Check(
    reference=solutions.ppo_epochs,
    definition=definitions.ppo_epochs,
    cases=_epochs_cases,
    call=_call_epochs,
)


def _call_fit(function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Train a table of values by plain gradient descent; return the losses on the way."""
    table = inputs["values"].clone().requires_grad_()
    optimizer = torch.optim.SGD([table], lr=inputs["learning_rate"])
    losses = _in_order(lambda: function(
        lambda rows: table[rows], optimizer, inputs["returns"], inputs["mask"],
        epochs=inputs["epochs"], minibatch_size=inputs["minibatch_size"],
    ))  # fmt: skip
    return torch.tensor([float(x) for x in losses]) if isinstance(losses, list) else losses


def _fit_cases(draw: Draw) -> Iterator[Case]:
    if draw.padding != "numbers" or draw.batch == 1:
        return
    size = (draw.batch, draw.time)
    sizes = [("two epochs", 2, draw.batch), ("three epochs", 3, draw.batch),
             ("one response per minibatch", 2, 1)]  # fmt: skip
    if draw.batch > 2:
        sizes.append(("a shorter last minibatch", 1, draw.batch - 1))
    for note, epochs, n in sizes:
        yield draw.case(
            note, values=draw.floats(*size), returns=draw.floats(*size), mask=draw.mask,
            epochs=epochs, minibatch_size=n, learning_rate=0.5,
        )  # fmt: skip


fit_values = Check(solutions.fit_values, definitions.fit_values, _fit_cases, call=_call_fit)


def _call_sft(function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Return the table of logits after an epoch of SFT, and the mean loss."""
    given = {name: inputs[name] for name in ("tokens", "mask", "minibatch_size")}
    table, mean = _trained(inputs, partial(function, **given))
    if table is ... or mean is None or mean is ...:
        return mean if mean is None else ...
    mean = mean.detach() if isinstance(mean, torch.Tensor) else mean
    return torch.cat([table.flatten(), torch.tensor([float(mean)])])


def _sft_cases(draw: Draw) -> Iterator[Case]:
    if draw.padding != "numbers" or draw.batch * draw.time * draw.vocab > 40 or draw.batch == 1:
        return
    sizes = {"one minibatch": draw.batch, "one row per minibatch": 1}
    if draw.batch > 2:
        sizes["a shorter last minibatch"] = draw.batch - 1
    for note, size in sizes.items():
        step: dict[str, Any] = {"minibatch_size": size, "learning_rate": 4.0}
        logits, tokens, mask = draw.logits(), draw.tokens(), draw.mask
        yield draw.case(note, logits=logits, tokens=tokens, mask=mask, **step)
        same = {"tokens": tokens[:1] * draw.batch, "mask": mask[:1] * draw.batch}
        yield draw.case(f"{note}, all rows the same", logits=logits[:1], **same, **step)


def _returned(inputs: dict[str, Nested]) -> Nested:
    return [False] * len(definitions.leaves(inputs["logits"])) + [True]


sft_epoch = Check(
    reference=solutions.sft_epoch,
    definition=definitions.sft_epoch,
    cases=_sft_cases,
    call=_call_sft,
    regions={"in the number returned": _returned},
)
