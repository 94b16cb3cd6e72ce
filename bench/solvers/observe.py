"""Ask a model, and see which solvers it calls and how often they evaluate its fields."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...attacks.core.image_dtype import call_in_its_dtype, image_dtype
from ...attacks.core.modes import eval_mode
from ...attacks.core.torch_settings import KeptSettings, set_torch_random_states, torch_random_states
from ...models import ODEBlock
from . import torchdiffeq_library, torchdyn_library, torchode_library
from .evaluations import evaluations_times_images, rows_of
from .interception import intercepted
from .ode_block import ODEBlockForward
from .recording import Observer, SolverFunction, changed_by, observed_by
from .solver_call import SolverCall, SolverChange

_functions: dict[FunctionType, SolverFunction] = {}
"""One handler for each function, whoever asks."""


def observe(model: nn.Module, images: Tensor) -> list[SolverCall]:
    """The solves of one forward pass of `model` on `images` (N, C, H, W), in eval mode, without gradients.

    Random states are put back, so that nothing changes by having looked. Empty where no call of robustode,
    torchdiffeq, torchdyn or torchode is seen: the model may step itself, or by a copy of a library. A model
    that is compiled is asked as it is without `torch.compile`.
    """
    observer = Observer(calls=[])
    before, new = _libraries(), image_dtype(model, images) is None
    random_states = torch_random_states()
    try:
        with KeptSettings(model), eager(model), eval_mode(model), torch.no_grad(), solvers_seen(observer):
            call_in_its_dtype(model, images)
    finally:
        set_torch_random_states(random_states)
    if new and (_libraries() != before or image_dtype(model, images) != images.dtype):
        return observe(model, images)  # a library was imported in this very pass, or a first try failed
    return list(observer.calls or ())


def count_nfe(model: nn.Module, images: Tensor) -> int | None:
    """Field evaluations of one forward pass of `model` on `images` (N, C, H, W); None where none is seen.

    Rounded up where parts of the batch are solved for apart and take unequal numbers.
    """
    solves = [(rows_of(call.state), call.evaluations) for call in observe(model, images)]
    total = evaluations_times_images(solves, len(images))
    return None if total is None else -(-total // len(images))


def adaptive_evaluations(model: nn.Module, images: Tensor) -> int | None:
    """Field evaluations of a pass of `images` in solves that choose their steps; None where none does."""
    calls = [call for call in observe(model, images) if call.adaptive]
    return sum(call.evaluations for call in calls) if calls else None


@contextmanager
def solvers_seen(observer: Observer) -> Iterator[None]:
    """Tell `observer` of every solve in a ``with`` block; no number changes by it."""
    with intercepted((f.function, f.handle) for f in _solver_functions()), observed_by(observer):
        yield


@contextmanager
def solvers_changed(change: SolverChange) -> Iterator[None]:
    """Solve otherwise in a ``with`` block."""
    with intercepted((f.function, f.handle) for f in _solver_functions()), changed_by(change):
        yield


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run what is compiled in `model` without its compilation, in which no call could be seen."""
    with ExitStack() as stack:
        if is_compiled(model):
            stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6 has it
            stack.enter_context(stance("force_eager") if stance else nullcontext())
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` was called on the model, a part of it or a function that it holds."""
    return any(map(_is_compiled, model.modules()))


def _is_compiled(module: nn.Module) -> bool:
    forward = getattr(type(module), "forward", None)  # of TorchScript it cannot be read
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or any(map(_compiled, (forward, *vars(module).values(), *_globals(forward))))
    )


def _globals(function: Any) -> list[Any]:
    """The global values that the code of a function names."""
    code, values = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    return [] if code is None else [values[name] for name in code.co_names if name in values]


def _compiled(value: Any) -> bool:
    return callable(value) and hasattr(value, "_torchdynamo_orig_callable")


def _solver_functions() -> list[SolverFunction]:
    found: list[tuple[type[SolverFunction], FunctionType]] = [
        (ODEBlockForward, cast(FunctionType, ODEBlock.forward)),
        *torchdiffeq_library.functions(),
    ]
    found += torchdyn_library.functions() + torchode_library.functions()
    for kind, function in found:
        if function not in _functions:
            _functions[function] = kind(function)
    return [_functions[function] for _, function in found]


def _libraries() -> set[str]:
    return {name for name in ("torchdyn", "torchode") if name in sys.modules}
