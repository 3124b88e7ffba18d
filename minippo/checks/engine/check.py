"""A check: the right answer, the inputs, the known mistakes and the verdict."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from minippo.checks.definitions import gradient
from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import Case, Draw, Nested, draws, weights
from minippo.checks.engine.contract import contract
from minippo.checks.engine.judge import Expected, Failure, Region, alike, failure, properties, shown
from minippo.checks.engine.observe import Observation, observe
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
            result = self.judge(cases, [self.observe(function, case) for case in cases], left_out)
            if result.finished:
                _ATTEMPTED.add(self.name)
        return replace(result, function=function, reference=self.reference)

    def generate(self, seed: int | str, left_out: Sequence[str] = ()) -> Iterator[Case]:
        """Yield a seed's cases, smallest first, except those that need an omitted keyword.

        The worked example of the exercise's contract comes before them.
        """
        if (agreed := contract(self.name)) and not {*left_out} & {*agreed.case().inputs}:
            yield agreed.case()
        for draw in draws(f"{self.name} {seed}"):
            for case in self.cases(draw):
                asked = not any(name in case.inputs for name in left_out)
                if asked and (case.spoiled() or not draw.junk):
                    yield case

    def observe(self, function: Function, case: Case) -> Observation:
        """Run the function on a case and record what it does."""
        slopes = [*self.slopes, *self.no_slopes] if case.slopes else []
        return observe(lambda inputs: self._called(function, inputs), case, slopes)

    def expected(self, case: Case) -> Expected:
        """Return a case's right answer: the definition's value and finite-difference slopes."""
        slopes = {
            name: gradient(partial(self._weighted, case, name), case.inputs[name])
            for name in self.slopes
            if case.slopes and isinstance(case.inputs.get(name), list)
        }
        return Expected(self.definition(**case.inputs), slopes, self.no_slopes)

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
        failures = [
            failure(case, self.expected(case), observation)
            for case, observation in zip(cases, seen, strict=True)
        ]
        wrong = [f for f in failures if f is not None]
        if not wrong:
            parts = "value and gradient" if self.slopes else "value"
            skipped = f"; not checked: {', '.join(left_out)}" if left_out else ""
            return Result(self.name, True, f"passed ({len(cases)} cases, {parts}{skipped})")
        if mistakes := self.recognise(cases, seen, failures):
            named = " and ".join(mistake.name for mistake in mistakes)
            return Result(self.name, False, f"not yet: {named}.", mistakes)
        first = next((f for f in wrong if f.part == "raised"), wrong[0])
        says, *more = first.says.split("\n")
        lines = [*more, *properties(cases, failures, self.regions), *shown(first)]
        return Result(self.name, False, f"not yet. {says}", lines=tuple(lines))

    def recognise(
        self, cases: Sequence[Case], seen: Sequence[Observation], failures: Sequence[Failure | None]
    ) -> tuple[Mistake, ...]:
        """Find the known mistake, or pair of mistakes, that explains all observations."""
        # Failing cases separate the candidates best: try them first and stop early.
        order = sorted(range(len(cases)), key=lambda i: failures[i] is None)
        for mistakes in self.flawed.combinations():
            version = self.flawed.version([mistake.name for mistake in mistakes])
            observed = ((i, self.observe(version, cases[i])) for i in order)
            if not all(alike(seen[i], x, cases[i], self.slopes) for i, x in observed):
                continue
            if self.explains(version, cases[order[0]]):
                return mistakes
        return ()

    def explains(self, version: Function, case: Case) -> bool:
        """Whether a version fails, too: a mistake in an omitted keyword explains nothing."""
        return failure(case, self.expected(case), self.observe(version, case)) is not None

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
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return []
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
