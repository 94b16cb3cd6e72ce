"""Which backend solves ODE blocks: compiled steps where there are some, or torchdiffeq."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

from ..._registry import unknown_name

ODEBackend: TypeAlias = Literal["compiled", "torchdiffeq"]
"""``compiled`` uses compiled steps wherever they support the flow, ``torchdiffeq`` never does."""

ODE_BACKENDS: tuple[ODEBackend, ...] = get_args(ODEBackend)
"""Every value of `ODEBackend`."""

ENVIRONMENT_VARIABLE = "ROBUSTODE_FUSED"
"""``0``, ``off``, ``false`` or ``no`` makes ``torchdiffeq`` the backend that a process starts with."""


def _initial_backend(environment: Mapping[str, str] = os.environ) -> ODEBackend:
    value = environment.get(ENVIRONMENT_VARIABLE, "1").lower()
    return "torchdiffeq" if value in ("0", "off", "false", "no") else "compiled"


_backend: ODEBackend = _initial_backend()


def get_ode_backend() -> ODEBackend:
    """Return the backend of this process.

    Returns
    -------
    str
        ``compiled``, unless `set_ode_backend`, `use_ode_backend` or the environment variable
        ``ROBUSTODE_FUSED=0`` chose ``torchdiffeq``.
    """
    return _backend


def set_ode_backend(backend: ODEBackend) -> None:
    """Choose the backend for every ODE block of this process.

    Parameters
    ----------
    backend
        ``compiled``: compiled steps (numba on a CPU, triton on a GPU) wherever they support the flow, else
        torchdiffeq. ``torchdiffeq``: always torchdiffeq, the reference that compiled steps are tested by.

    Raises
    ------
    UnknownName
        For any other name.
    """
    global _backend
    if backend not in ODE_BACKENDS:
        raise unknown_name("ODE backend", str(backend), list(ODE_BACKENDS))
    _backend = backend


@contextmanager
def use_ode_backend(backend: ODEBackend) -> Iterator[None]:
    """Choose the backend for a ``with`` block; the previous one is restored afterwards.

    Parameters
    ----------
    backend
        As in `set_ode_backend`.

    Raises
    ------
    UnknownName
        For an unknown backend.

    Examples
    --------
    >>> with use_ode_backend("torchdiffeq"):
    ...     get_ode_backend()
    'torchdiffeq'
    """
    before = get_ode_backend()
    set_ode_backend(backend)
    try:
        yield
    finally:
        set_ode_backend(before)
