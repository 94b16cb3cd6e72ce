"""The guard around other people's code: what is global is pinned before it runs, and put back after it.

The import of a model file or plug-in, a factory, a training, an attack, the evaluation of a module: each
runs within `foreign_code`. So no model changes another's numbers, and none depends on what the caller has
set. Within it, `attacks.core.torch_settings.KeptSettings` stands around each forward pass, loss and penalty.

Put back without a word: the random states of torch, numpy and `random`, which are seeded first. Not covered:
functions of further libraries that are replaced, environment variables but ``ROBUSTODE_*`` (libraries set
theirs when they are imported), what C code prints, and threads that go on.
"""

from __future__ import annotations

import functools
import gc
import inspect
import locale
import os
import random
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from ..._arguments import ArgumentCheck
from ..._errors import ForeignCodeWarning, RobustodeWarning
from ...attacks.core.seeds import derive
from ...attacks.core.torch_settings import (
    SETTINGS,
    Setting,
    changes,
    guard,
    put_back,
    seed_torch,
    separate_stream,
    set_torch_random_states,
    torch_random_states,
)
from ...models import get_ode_backend, set_ode_backend
from .announcements import announce, sentence, telling
from .library_functions import put_functions_back, replaced_functions
from .own_generators import as_first_seen, generators_of, seeded_generators
from .printed import printing_once

P = ParamSpec("P")
T = TypeVar("T")

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _set_working_directory(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


def _set_signals(handlers: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            if handler is not None:  # of C code, which Python cannot set again
                signal.signal(number, handler)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("ROBUSTODE_")}


def _set_variables(variables: dict[str, str]) -> None:
    for name in _variables().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _blanket_filters() -> tuple[Any, ...]:
    """The filters of all warnings; those of single ones are put back without a word: libraries set theirs."""
    return warnings.showwarning, *(f for f in warnings.filters if (f[1], f[2], f[3]) == (None, Warning, None))


OF_THE_PROCESS: tuple[Setting, ...] = (
    Setting("the filters of all warnings", _blanket_filters, lambda filters: None),  # `_own_filters` does it
    Setting("the working directory", _working_directory, _set_working_directory),
    Setting("the standard output", lambda: sys.stdout, lambda stream: setattr(sys, "stdout", stream)),
    Setting("the standard error output", lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
    Setting("numpy's handling of errors", np.geterr, lambda value: np.seterr(**value)),
    Setting("robustode's ODE backend", get_ode_backend, set_ode_backend),
    Setting("functions of torch, numpy or torchdiffeq", replaced_functions, put_functions_back),
    Setting("ROBUSTODE variables of the environment", _variables, _set_variables),
    Setting("signal handlers", lambda: [signal.getsignal(number) for number in _SIGNALS], _set_signals),
    Setting(
        "the locale", lambda: locale.setlocale(locale.LC_ALL), lambda v: locale.setlocale(locale.LC_ALL, v)
    ),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    # Python takes bytecode for current where a file is edited within a second to the same length.
    Setting(
        "the writing of bytecode",
        lambda: not sys.dont_write_bytecode,
        lambda writes: setattr(sys, "dont_write_bytecode", not writes),
        False,
    ),
    Setting(
        "garbage collection", gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable(), True
    ),
)
"""Everything else that is put back."""

_ALL = (*SETTINGS, *OF_THE_PROCESS)
_turn = threading.RLock()


# --- the guard ------------------------------------------------------------------------------------


@contextmanager
def foreign_code(
    source: str, *, seed: int | None = None, calls: bool = True, single_call: bool = False
) -> Iterator[None]:
    """Run a block of other people's code with every global setting pinned; put all of them back afterwards.

    These settings belong to the process: blocks in several threads take turns.

    Parameters
    ----------
    source
        Who is named where the block changed one, such as ``net.py``; "" for this package, in which only a
        model's calls can have changed it: whoever asks the model tells of it.
    seed
        What torch is seeded with; numpy and `random` get seeds derived from it. None leaves the random states
        as they stand. They are put back afterwards in either case.
    calls
        Whether what was changed in a model's calls within the block is told of `source`, too.
    single_call
        The block is one call of a model: whether gradients are recorded is for the caller to say.
    """
    with _turn:
        yield from _guarded(source, seed, calls=calls, single_call=single_call)


def _guarded(source: str, seed: int | None, *, calls: bool, single_call: bool) -> Iterator[None]:
    earlier = dict(changes)
    if calls:
        changes.clear()
    guard.depth += 1
    random_states = torch_random_states(), np.random.get_state(), random.getstate()
    original, gradients = [setting.read() for setting in _ALL], torch.is_grad_enabled()
    names: list[str] = []
    try:
        with ExitStack() as stack:
            if torch.get_default_device() != torch.device("cpu"):
                stack.enter_context(torch.device("cpu"))
            stack.enter_context(torch.inference_mode(False))
            for setting in _ALL:
                if setting.pinned is not None and setting.read() != setting.pinned:
                    setting.write(setting.pinned)
            if single_call:
                torch.set_grad_enabled(gradients)
            stack.enter_context(_own_filters())
            if seed is not None:
                _seed(seed)
            pinned = [setting.read() for setting in _ALL]
            try:
                yield
            finally:
                names = put_back(_ALL, pinned)
                if calls:
                    names = list(dict.fromkeys([*changes, *names]))
    finally:
        guard.depth -= 1
        put_back(_ALL, original)
        set_torch_random_states(random_states[0])
        np.random.set_state(random_states[1])
        random.setstate(random_states[2])
        if calls:
            changes.clear()
            changes.update(earlier)
        if source:
            announce(source, names)
        else:
            changes.update(dict.fromkeys(names))


@contextmanager
def asking(model: nn.Module, seed: int) -> Iterator[None]:
    """Ask a model within `foreign_code`: it draws from `seed`, apart from what attacks draw."""
    (own,) = derive([seed], "model")
    with (
        foreign_code(source_of(model), seed=seed),
        seeded_generators(generators_of(model), own),
        separate_stream(own),
    ):
        yield


@contextmanager
def building(build: Callable[..., nn.Module], seed: int) -> Iterator[None]:
    """Call a factory within `foreign_code`: it draws from `seed`, or from its file's own seeds."""
    with printing_once(), foreign_code(source_of(build), seed=seed), as_first_seen(generators_of(build)):
        yield


@contextmanager
def running(model: nn.Module, seed: int) -> Iterator[None]:
    """Train or examine a model within `foreign_code`: every random number follows from `seed`."""
    with foreign_code(source_of(model), seed=seed), seeded_generators(generators_of(model), seed):
        yield


def independent_of_caller(function: Callable[P, T]) -> Callable[P, T]:
    """Have `function` of the Python interface give the same whatever its caller has set, and leave it so.

    Its arguments are checked by their annotations first. What foreign code changed meanwhile is a
    `ForeignCodeWarning` once it has returned.
    """
    check = ArgumentCheck(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        lines: list[str] = []
        bound = check(args, kwargs)
        with telling(lambda source, names: lines.append(sentence(source, names))), foreign_code(""):
            result = function(*bound.args, **bound.kwargs)
        for line in lines:
            warnings.warn(line, ForeignCodeWarning, stacklevel=2)
        return result

    return call


def attacking(craft: Callable[..., Any] | None) -> AbstractContextManager[None]:
    """Run an attack within `foreign_code`; what the model changes meanwhile is not told of the attack."""
    ours = str(getattr(craft, "__module__", "")).startswith(f"{_PACKAGE}.")
    return foreign_code("" if ours else source_of(craft), calls=False)


@contextmanager
def importing(source: str) -> Iterator[None]:
    """Run an import of foreign code: within `foreign_code`, seeded alike each time, printing to stderr.

    What a command prints for a program to read stays free of what a file prints when it is imported.
    """
    with foreign_code(source, seed=0), redirect_stdout(sys.stderr):
        yield


def _seed(seed: int) -> None:
    seed_torch(seed)
    for_numpy, for_random = (derive([seed], "foreign code", what)[0] for what in ("numpy", "random"))
    np.random.seed(for_numpy % 2**32)
    random.seed(for_random)


@contextmanager
def _own_filters() -> Iterator[None]:
    """Put the warnings filters back after a block; in it, only warnings of this package are errors.

    A model that warns answers as it does where warnings are no errors.
    """
    with warnings.catch_warnings():
        filters: list[Any] = []
        for action, message, category, module, line in warnings.filters:
            if action == "error" and module is None and category not in RobustodeWarning.__subclasses__():
                if issubclass(RobustodeWarning, category):
                    filters.append((action, message, RobustodeWarning, None, line))
                filters.append(("default", message, category, _NOT_OURS, line))
            filters.append((action, message, category, module, line))
        warnings.filterwarnings("default", module="robustode, none of which is called so", append=True)
        warnings.filters[:] = filters  # type: ignore[index]
        yield


_PACKAGE = __name__.partition(".")[0]
_NOT_OURS = re.compile(rf"(?!{_PACKAGE}\b)")


def source_of(code: Any) -> str:
    """Who is named for a function, a class or a module: the file it stands in, else its own name."""
    code = inspect.unwrap(code) if inspect.isroutine(code) else code
    kind = code if isinstance(code, type) or inspect.isroutine(code) else type(code)
    body = getattr(getattr(kind, "forward", kind), "__code__", None)
    path = Path(body.co_filename) if body is not None else None
    if path is None or not path.is_file() or "site-packages" in path.parts:
        return str(getattr(kind, "__name__", kind))
    return path.name


guard.whole = lambda code: foreign_code(source_of(code), single_call=True)
