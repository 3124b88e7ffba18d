"""A check: what is right, on which inputs, which mistakes are known, and the verdict."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from minippo.checks.definitions import gradient
from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import Case, Draw, Nested, draws, weights
from minippo.checks.engine.judge import Expected, Failure, Region, alike, failure, properties, shown
from minippo.checks.engine.observe import Observation, observe
from minippo.checks.engine.result import Result, Solution
from minippo.checks.mistakes import CATALOGUE, Flawed, Mistake

SEED = 2027  # of the cases that a notebook sees; a grader has its own
Function = Callable[..., Any]


@dataclass(frozen=True)
class Check:
    """Call it with your function: `checks.gae(my_gae)`.

    Attributes:
        reference: minippo's function: its signature is asked for, its source is the solution.
        definition: slow loops on the nested lists of a case, with the reference's arguments.
        cases: the inputs for one size and seed.
        slopes: arguments that the gradient must reach.
        no_slopes: arguments that no gradient may reach.
        optional: keywords that a student's function may leave out; they are then not checked.
        call: how the function is called, where it is not called like the reference.
        regions: phrase -> where it holds among the outputs, for "wrong only where ...".
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
        """Of the function that is asked for."""
        return self.reference.__name__

    @property
    def flawed(self) -> Flawed:
        """Its known mistakes."""
        return CATALOGUE[self.name]

    def __call__(self, function: Function, *, seed: int | str = SEED) -> Result:
        """Is `function` right, in value and gradient? The result shows itself.

        Another seed asks other questions: a grader's is not the notebook's.
        """
        if problem := self.signature_problem(function):
            return Result(self.name, False, problem)
        left_out = self.left_out(function)
        cases = list(self.generate(seed, left_out))
        result = self.judge(cases, [self.observe(function, case) for case in cases], left_out)
        if result.finished:
            _ATTEMPTED.add(self.name)
        return result

    def generate(self, seed: int | str, left_out: Sequence[str] = ()) -> Iterator[Case]:
        """The cases of a seed, from the smallest, without those that need a keyword left out."""
        for draw in draws(f"{self.name} {seed}"):
            for case in self.cases(draw):
                asked = not any(name in case.inputs for name in left_out)
                if asked and (case.spoiled() or not draw.junk):
                    yield case

    def observe(self, function: Function, case: Case) -> Observation:
        """What the function does on a case."""
        slopes = [*self.slopes, *self.no_slopes] if case.slopes else []
        return observe(lambda inputs: self._called(function, inputs), case, slopes)

    def expected(self, case: Case) -> Expected:
        """What is right on a case: the definition's value, and its slopes by differences."""
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
        """The verdict on what was seen."""
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
        """The known mistake, or pair of them, which explains everything that was seen."""
        # Where it failed the candidates differ most: look there first, and drop out early.
        order = sorted(range(len(cases)), key=lambda i: failures[i] is None)
        for mistakes in self.flawed.combinations():
            version = self.flawed.version([mistake.name for mistake in mistakes])
            if not all(alike(seen[i], self.observe(version, cases[i]), cases[i]) for i in order):
                continue
            # A mistake that these cases do not show, as of a keyword left out, explains nothing.
            first = cases[order[0]]
            if failure(first, self.expected(first), self.observe(version, first)):
                return mistakes
        return ()

    def _called(self, function: Function, inputs: dict[str, Any]) -> Any:
        """By default tensors by position and the rest as in the reference's signature."""
        if self.call is not None:
            return self.call(function, inputs)
        keywords = _keywords(self.reference)
        args = [x for name, x in inputs.items() if name not in keywords]
        return function(*args, **{name: inputs[name] for name in keywords if name in inputs})

    def left_out(self, function: Function) -> list[str]:
        """Optional keywords that the function does not take."""
        signature = _signature(function)
        if signature is None:
            return list(self.optional)
        parameters = signature.parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return []
        return [name for name in self.optional if name not in parameters]

    def signature_problem(self, function: Any) -> str:
        """Why the function cannot even be called; "" if it can."""
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
            raise StopIteration  # that it takes these is all that was asked

        case = next(iter(self.generate(SEED, self.left_out(function))))
        try:
            self._called(listen, case.tensors())
        except TypeError as error:
            return f"not yet. It is called with ({', '.join(called)}), but {error}."
        except StopIteration:
            pass
        return ""


def _signature(function: Function) -> inspect.Signature | None:
    """What it can be called with; None where nobody knows, as of torch's own functions."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def _keywords(function: Function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


_ATTEMPTED: set[str] = set()


def show_solution(check: Check) -> Solution:
    """The reference's source after one attempt; otherwise on asking twice."""
    known = check.name in _ATTEMPTED
    _ATTEMPTED.add(check.name)
    return Solution(check.name, check.reference if known else None)
