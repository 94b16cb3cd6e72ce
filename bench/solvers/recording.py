"""What happens when a solver is called: its field is counted, the solve is noted, and it may be changed."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any

from .evaluations import rows_of
from .solver_call import Derivative, SolverCall, SolverChange, State


@dataclass
class Observer:
    """What one forward pass asked of solvers.

    Attributes
    ----------
    solves
        Of each solve the rows of its state and its field evaluations, backward passes left out.
    calls
        The solves, in the order in which they ended; None where only evaluations are wanted.
    """

    solves: list[tuple[int, int]] = field(default_factory=list)
    calls: list[SolverCall] | None = None


@dataclass
class Evaluations:
    """How often the field of the solve that is going on was evaluated."""

    count: int = 0


@dataclass(frozen=True)
class _Situation:
    """Who observes, how solves are changed, and the solve that is going on in this thread."""

    observers: tuple[Observer, ...] = ()
    change: SolverChange | None = None
    solving: Evaluations | None = None


_situation: ContextVar[_Situation | None] = ContextVar("situation", default=None)
_entered: dict[object, _Situation] = {}
"""The blocks of all threads, in the order in which they were entered."""


def _now() -> _Situation:
    """The situation of this thread; in one of its own that a model starts, that of the last block entered."""
    return _situation.get() or next(reversed(list(_entered.values())), _Situation())


@contextmanager
def _within(situation: _Situation) -> Iterator[None]:
    token = _situation.set(situation)
    try:
        yield
    finally:
        _situation.reset(token)


@contextmanager
def _entering(situation: _Situation) -> Iterator[None]:
    key = object()
    _entered[key] = situation
    try:
        with _within(situation):
            yield
    finally:
        del _entered[key]


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Tell `observer` of the solves in a ``with`` block, those in threads of the model among them."""
    now = _situation.get() or _Situation()
    with _entering(replace(now, observers=(*now.observers, observer), solving=None)):
        yield


@contextmanager
def changed_by(change: SolverChange) -> Iterator[None]:
    """Change the solves in a ``with`` block, as above; an inner change takes the place of an outer."""
    with _entering(replace(_situation.get() or _Situation(), change=change)):
        yield


class CountedField:
    """A field that counts its evaluations during one solve, and is like the field otherwise."""

    def __init__(self, field: Derivative, evaluations: Evaluations) -> None:
        self._field, self._evaluations = field, evaluations

    @classmethod
    def of(cls, field: Derivative, evaluations: Evaluations) -> CountedField:
        """`field` itself where one function of a library has it counted before it calls another."""
        return field if isinstance(field, cls) else cls(field, evaluations)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the field."""
        self._evaluations.count += 1
        with _within(replace(_now(), solving=None)):  # what it solves itself is another solve
            return self._field(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)


@dataclass(frozen=True)
class FunctionCall:
    """One call of a function that solves an ODE: its arguments by name, and the count of its field."""

    original: Callable[..., Any]
    signature: inspect.Signature
    arguments: Mapping[str, Any]
    evaluations: Evaluations

    def answer(self, **others: Any) -> Any:
        """What the function itself returns, called as it was but for the arguments `others`."""
        bound = inspect.BoundArguments(self.signature, {**self.arguments, **others})  # type: ignore[arg-type]
        return self.original(*bound.args, **bound.kwargs)


@dataclass(frozen=True)
class SolverFunction(ABC):
    """A function of a library that solves an ODE."""

    function: FunctionType
    signature: inspect.Signature = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", inspect.signature(self.function))

    def handle(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of the function; see `interception.Handler`."""
        now = _now()
        if not (now.observers or now.change):
            return original(*args, **kwargs)
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)  # it says what is wrong itself
        bound.apply_defaults()
        arguments = bound.arguments
        if self.solves_adjoint(arguments):
            with _within(_Situation()):
                return original(*args, **kwargs)
        if now.solving is not None:  # one function of a library calls another: still the same solve
            return self.run(FunctionCall(original, self.signature, arguments, now.solving))
        call = FunctionCall(original, self.signature, arguments, Evaluations())
        solve = self.describe(arguments) if any(o.calls is not None for o in now.observers) else None
        with _within(replace(now, solving=call.evaluations)):
            if now.change is None or not now.change.concerns(adaptive=self.adaptive(arguments)):
                result = self.run(call)
            else:
                result = self.run_otherwise(call, now.change)
        for observer in now.observers:
            observer.solves.append((rows_of(self.state(arguments)), call.evaluations.count))
            if observer.calls is not None and solve is not None:
                observer.calls.append(replace(solve, evaluations=call.evaluations.count))
        return result

    def solves_adjoint(self, arguments: Mapping[str, Any]) -> bool:
        """Whether it solves the adjoint equation of a backward pass, of which nothing is told."""
        return False

    @abstractmethod
    def adaptive(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the method chooses its own step sizes."""

    @abstractmethod
    def state(self, arguments: Mapping[str, Any]) -> State:
        """The initial state."""

    @abstractmethod
    def describe(self, arguments: Mapping[str, Any]) -> SolverCall:
        """What is asked for."""

    @abstractmethod
    def run(self, call: FunctionCall) -> Any:
        """Answer as it was called; its field is counted here or by a function that it calls."""

    @abstractmethod
    def run_otherwise(self, call: FunctionCall, change: SolverChange) -> Any:
        """Solve with another solver; the same kind of result.

        Raises
        ------
        CannotSolveOtherwise
            When no other solver can take its place.
        """
