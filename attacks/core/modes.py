"""Training and evaluation mode, set and restored by a module's own `train()` and `eval()`.

A module may do more in them than set flags: merge weights, fuse layers, switch noise off. Setting the flag
``training`` alone would leave that undone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import nn

_in_eval_mode: list[nn.Module] = []
"""Modules within `eval_mode`, innermost last: a block inside another changes nothing."""


def set_mode(module: nn.Module, *, training: bool) -> None:
    """Call the module's own `train` or `eval`, whatever they return; `train` may take no argument.

    A module that was exported by torch stays in its one mode.
    """
    with suppress(NotImplementedError):
        if training:
            module.train(True) if _takes_mode(module) else module.train()
        elif _takes_mode(module) or type(module).eval is not nn.Module.eval:
            module.eval()
        else:
            nn.Module.train(module, False)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block; afterwards each submodule is in the mode in which it was.

    A module that is in evaluation mode throughout is left alone.
    """
    if any(module is other for other in _in_eval_mode):
        yield
        return
    modes = [(part, part.training) for part in module.modules() if hasattr(part, "training")]
    unmoved: set[int] = set()
    _in_eval_mode.append(module)
    try:
        if any(training for _, training in modes):
            set_mode(module, training=False)
            unmoved = {id(part) for part, training in modes if training and part.training}
        yield
    finally:
        _in_eval_mode.remove(module)
        for part, training in modes:  # from the outermost inwards: each may set those inside it
            if _overrides(part):
                if part.training != training or id(part) in unmoved:
                    set_mode(part, training=training)
            else:
                part.training = training


@contextmanager
def training_mode(module: nn.Module) -> Iterator[None]:
    """Training mode for a block in which weights are read or set; evaluation mode after it.

    A module that merges or fuses weights for evaluation has those that are stored in training mode alone.
    """
    set_mode(module, training=True)
    try:
        yield
    finally:
        set_mode(module, training=False)


def _overrides(module: nn.Module) -> bool:
    kind = type(module)
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval


def _takes_mode(module: nn.Module) -> bool:
    try:
        inspect.signature(module.train).bind(True)
    except TypeError:
        return False
    return True
