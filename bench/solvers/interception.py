"""Calls of a function go to a handler while anybody wants it, by whatever name the caller holds it.

User code binds names early (``from torchdiffeq import odeint_adjoint as odeint``), so that replacing a name
in a module reaches nobody. All names share one function object, and it is the code of that object that is
exchanged here, and put back when the last one who wanted it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Is called with the function as it was, and the positional and keyword arguments of the call."""

_lock = threading.Lock()
_wanted: dict[FunctionType, tuple[int, CodeType]] = {}
"""How many want the calls of a function, and its own code."""


@contextmanager
def intercepted(functions: Iterable[tuple[FunctionType, Handler]]) -> Iterator[None]:
    """Send calls of each function to its handler, in every thread, for a ``with`` block.

    Blocks may be nested and may overlap in several threads: the handler of the first holds, and the last one
    to end restores the code. A handler must therefore be the same for everybody, and look up who is
    interested. Functions without a closure can be intercepted.
    """
    entered: list[FunctionType] = []
    try:
        for function, handler in functions:
            _enter(function, handler)
            entered.append(function)
        yield
    finally:
        for function in reversed(entered):
            _leave(function)


def _enter(function: FunctionType, handler: Handler) -> None:
    with _lock:
        count, code = _wanted.get(function, (0, function.__code__))
        if not count:
            function.__code__ = _detour(_copy(function), handler)
        _wanted[function] = (count + 1, code)


def _leave(function: FunctionType) -> None:
    with _lock:
        count, code = _wanted.pop(function)
        if count > 1:
            _wanted[function] = (count - 1, code)
        else:
            function.__code__ = code


def _copy(function: FunctionType) -> FunctionType:
    """The same function as another object, which keeps its code."""
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__qualname__ = function.__qualname__
    return copied


def _detour(original: FunctionType, handler: Handler) -> CodeType:
    """Code that calls ``handler(original, args, kwargs)``; it uses no global name: those are foreign."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return handler(original, args, kwargs)

    code: CodeType = _template.__code__
    constants = tuple(call if constant == "the call" else constant for constant in code.co_consts)
    return code.replace(co_consts=constants, co_name=original.__name__)


def _template(*args: Any, **kwargs: Any) -> Any:
    return "the call".__call__(*args, **kwargs)  # type: ignore[operator]
