"""A check: the right answer, the inputs, the known mistakes and the verdict."""

import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from minippo.checks.definitions import differences
from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import SIZES, Case, Draw, Nested, weights
from minippo.checks.engine.contract import contract
from minippo.checks.engine.describe import Region, clearest, properties, shown, turned_round
from minippo.checks.engine.judge import Expected, Failure, alike, failure
from minippo.checks.engine.observe import Observation, is_a_stub, observe
from minippo.checks.engine.result import Result, Solution
from minippo.checks.mistakes import CATALOGUE, Flawed, Mistake

SEED = 2027  # seed of a notebook's cases; a grader uses its own
Function = Callable[..., Any]


@dataclass(frozen=True)
class Check:
    """Call it with your function: `checks.gae(my_gae)`.

    Attributes:
        reference: minippo's function: its signature is required, its source is the solution.
        definition: Slow loops over a case's nested lists, with the reference's arguments.
        cases: The inputs for one size and seed.
        slopes: Arguments that the gradient must reach.
        no_slopes: Arguments that no gradient may reach.
        optional: Keywords a student's function may omit; they are then not checked.
        call: How to call the function, if not with the reference's arguments.
        regions: Phrase -> the outputs where it holds, for "wrong only where ...".
    """

    reference: Function
    definition: Function
    cases: Callable[[Draw], Iterable[Case]]
    slopes: Sequence[str] = ()
    no_slopes: Sequence[str] = ()
    optional: Sequence[str] = ()
    call: Callable[[Function, dict[str, Any]], Any] | None = None
    regions: Mapping[str, Region] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the function being checked."""
        return self.reference.__name__

    @property
    def flawed(self) -> Flawed:
        """The function's known mistakes."""
        return CATALOGUE[self.name]

    def __call__(self, function: Function, *, seed: int | str = SEED) -> Result:
        """Check the value and gradient of `function`. The result displays itself.

        A different seed gives different cases: a grader's seed is not the notebook's.
        """
        if problem := self.signature_problem(function):
            result = Result(self.name, False, problem)
        else:
            left_out = self.left_out(function)
            cases = list(self.generate(seed, left_out))
            seen = [self.observe(function, cases[0])]
            with redirect_stdout(io.StringIO()):  # what it prints is shown once
                seen += [self.observe(function, case) for case in cases[1:]]
            result = self.judge(cases, seen, left_out)
            if result.finished:
                _ATTEMPTED.add(self.name)
        return replace(result, function=function, reference=self.reference)

    def generate(
        self, seed: int | str, left_out: Sequence[str] = (),
        sizes: Sequence[tuple[int, int, int]] = SIZES,
    ) -> Iterator[Case]:  # fmt: skip
        """Yield a seed's cases, smallest first, except those that need an omitted keyword.

        The worked example of the exercise's contract comes before them. Each size comes with
        ordinary numbers on padding; then, where that changes a case, with zeros and with junk.
        """
        if (agreed := contract(self.name)) and not {*left_out} & {*agreed.case().inputs}:
            yield agreed.case()
        for size in sizes:
            plain = list(self.cases(Draw(f"{self.name} {seed}", size)))
            found = [*plain]
            for padding in ("zeros", "junk"):
                others = self.cases(Draw(f"{self.name} {seed}", size, padding=padding))
                pairs = zip(others, plain, strict=False)
                found += [a for a, b in pairs if a.inputs != b.inputs and not b.special]
            yield from (c for c in found if not any(name in c.inputs for name in left_out))

    def observe(self, function: Function, case: Case) -> Observation:
        """Run the function on a case and record what it does."""
        slopes = [*self.slopes, *self.no_slopes] if case.slopes else []
        seen = observe(lambda inputs: self._called(function, inputs), case, slopes)
        if seen.kind == "none" and is_a_stub(function):
            seen.kind = "unfinished"
        return seen

    def expected(self, case: Case) -> Expected:
        """Return a case's right answer: the definition's value and finite-difference slopes."""
        found = {
            name: differences(partial(self._weighted, case, name), case.inputs[name])
            for name in self.slopes
            if case.slopes and isinstance(case.inputs.get(name), list)
        }
        slopes = {name: slope for name, (slope, _) in found.items()}
        kinks = {name: kink for name, (_, kink) in found.items()}
        return Expected(self.definition(**case.inputs), slopes, self.no_slopes, kinks)

    def _weighted(self, case: Case, name: str, x: Nested) -> float:
        numbers = flat(self.definition(**(case.inputs | {name: x})))
        return sum(w * y for w, y in zip(weights(len(numbers)), numbers, strict=True))

    def judge(
        self, cases: Sequence[Case], seen: Sequence[Observation], left_out: Sequence[str] = ()
    ) -> Result:
        """Return the verdict on the observations."""
        if all(observation.kind == "unfinished" for observation in seen):
            says = "not finished yet. Put your code where the ... is, and run this again."
            return Result(self.name, False, says, finished=False)
        failures = [self._failure(case, one) for case, one in zip(cases, seen, strict=True)]
        special = [f.special for f in failures if f is not None]
        if not special:
            parts = "value and gradient" if self.slopes else "value"
            skipped = f"; not checked: {', '.join(left_out)}" if left_out else ""
            says = f"passed ({len(cases)} cases, {parts}{skipped})"
            return Result(self.name, True, says, idea=True)
        if "" in special:
            part = self._part([""], cases, seen, failures)
            return replace(part, headline=f"not yet{part.headline}")
        said = [self._part([*dict.fromkeys(special)], cases, seen, failures)]
        if not said[0].mistakes:  # not one mistake: perhaps one for each
            said = [self._part([x], cases, seen, failures) for x in dict.fromkeys(special)]
        names = dict.fromkeys(part.mistake or part.headline for part in said)
        return Result(
            self.name, False, f"right; not yet robust: {' and '.join(names)}.",
            tuple(dict.fromkeys(m for part in said for m in part.mistakes)),
            tuple(line for part in said for line in part.lines), idea=True,
        )  # fmt: skip

    def _part(
        self, special: Sequence[str], cases: Sequence[Case], seen: Sequence[Observation],
        failures: Sequence[Failure | None],
    ) -> Result:  # fmt: skip
        """Judge the cases of the idea and, if that is right, those with something special."""
        kept = [i for i, case in enumerate(cases) if case.special in ("", *special)]
        cases, seen = [cases[i] for i in kept], [seen[i] for i in kept]
        failed = [f if f and f.special in special else None for f in (failures[i] for i in kept)]
        if mistakes := self.recognise(cases, seen, failed):
            named = " and ".join(mistake.name for mistake in mistakes)
            return Result(self.name, False, f": {named}.", mistakes)
        first = clearest([f for f in failed if f is not None])
        says, *more = first.says.split("\n")
        if special != [""]:
            return Result(self.name, False, special[0], lines=(says, *more, *shown(first)))
        lines = [
            *more,
            *properties(cases, seen, failed, self.regions, self._defaults()),
            *shown(first),
        ]
        return Result(self.name, False, f". {says}", lines=tuple(lines))

    def recognise(
        self, cases: Sequence[Case], seen: Sequence[Observation], failures: Sequence[Failure | None]
    ) -> tuple[Mistake, ...]:
        """Find the known mistake, or pair of mistakes, that explains all observations."""
        # Failing cases separate the candidates best: try them first and stop early.
        order = sorted(range(len(cases)), key=lambda i: failures[i] is None)
        firsts = {f.special: f.case for f in reversed(failures) if f is not None}.values()
        turned = turned_round(failures)  # one sign explains it: two mistakes do not
        for flags, mistakes in self.candidates():
            if turned and len(mistakes) > 1:
                continue
            version = self.flawed.version(flags)
            observed = ((i, self.observe(version, cases[i])) for i in order)
            if not all(alike(seen[i], x, cases[i], self.slopes) for i, x in observed):
                continue
            if all(self.explains(version, case) for case in firsts):
                return mistakes
        return ()

    def candidates(self) -> Iterator[tuple[frozenset[str], tuple[Mistake, ...]]]:
        """Yield flags and what they are called, likeliest first."""
        for mistakes in self.flawed.combinations():
            yield frozenset(mistake.name for mistake in mistakes), mistakes

    def explains(self, version: Function, case: Case) -> bool:
        """Whether a version fails, too: a mistake in an omitted keyword explains nothing."""
        return self._failure(case, self.observe(version, case)) is not None

    def _failure(self, case: Case, seen: Observation) -> Failure | None:
        return failure(case, self.expected(case), seen)

    def _defaults(self) -> dict[str, Any]:
        """What a keyword is if a case does not name it."""
        parameters = inspect.signature(self.reference).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    def _called(self, function: Function, inputs: dict[str, Any]) -> Any:
        """Call it, by default with tensors by position and the rest as the reference takes it."""
        if self.call is not None:
            return self.call(function, inputs)
        keywords = _keywords(self.reference)
        args = [x for name, x in inputs.items() if name not in keywords]
        return function(*args, **{name: inputs[name] for name in keywords if name in inputs})

    def left_out(self, function: Function) -> list[str]:
        """Optional keywords that the function does not accept."""
        signature = _signature(function)
        if signature is None:
            return list(self.optional)
        parameters = signature.parameters
        return [name for name in self.optional if name not in parameters]

    def signature_problem(self, function: Any) -> str:
        """Explain why the function cannot be called; "" if it can."""
        if not callable(function):
            return f"not yet. A function is needed; a {type(function).__name__} came."
        signature = _signature(function)
        if signature is None:
            return ""
        names = list(inspect.signature(self.reference).parameters)
        called = list[str]()

        def listen(*args: Any, **keywords: Any) -> None:
            called.extend([*names[: len(args)], *keywords])
            signature.bind(*args, **keywords)
            raise StopIteration  # it accepts them: nothing else is tested here

        case = next(iter(self.generate(SEED, self.left_out(function))))
        try:
            self._called(listen, case.tensors())
        except TypeError as error:
            return f"not yet. It is called with ({', '.join(called)}), but {error}."
        except StopIteration:
            pass
        return ""


def _signature(function: Function) -> inspect.Signature | None:
    """Return the signature; None if unknown, as for torch's own functions."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def _keywords(function: Function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


_ATTEMPTED: set[str] = set()


def show_solution(check: Check) -> Solution:
    """Show the contract's solution, or else the reference, after one attempt or if asked twice."""
    if check.name not in _ATTEMPTED:
        _ATTEMPTED.add(check.name)
        return Solution(check.name, "")
    agreed = contract(check.name)
    return Solution(check.name, agreed.solution if agreed else inspect.getsource(check.reference))
