"""Settings of torch that change numbers: read, pinned, put back, and kept through a call of foreign code.

A forward pass, a loss or a penalty that changes one of them must not change what an attack, the benchmark or
another model computes after it. `KeptSettings` costs some ten microseconds, so that it can stand around every
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.utils import _device


@dataclass(frozen=True)
class Setting:
    """A global setting.

    Attributes
    ----------
    name
        In a sentence.
    read, write
        How it is read and set.
    pinned
        Its value while other people's code runs; None to take it as it is.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    pinned: Any = None


def _attribute(name: str, owner: Any, attribute: str, pinned: Any) -> Setting:
    return Setting(
        name, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value), pinned
    )


def _autocast(name: str, kind: str, dtype: torch.dtype) -> Setting:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(kind, value[0])
        torch.set_autocast_dtype(kind, value[1])

    return Setting(
        name, lambda: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)), write, (False, dtype)
    )


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


_PRECISIONS = (
    [
        ("generic", "all"),
        *((backend, what) for backend in ("cuda", "mkldnn") for what in ("all", "matmul", "conv", "rnn")),
    ]
    if hasattr(torch._C, "_get_fp32_precision_getter")  # from torch 2.9 on
    else []
)


@dataclass(frozen=True)
class _Precision:
    """The precision of float32 products: by torch's older function, then by each of its newer ones.

    Two are equal where products are the same: newer ones may state none or the full precision for that.
    """

    older: str | None
    newer: tuple[str, ...] = field(compare=False)
    effective: tuple[str, ...]


def _precision() -> _Precision:
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # both were used, and disagree
        older = None
    return _stated(older, tuple(torch._C._get_fp32_precision_getter(*where) for where in _PRECISIONS))


def _stated(older: str | None, newer: tuple[str, ...]) -> _Precision:
    return _Precision(older, newer, tuple("ieee" if value == "none" else value for value in newer))


def _set_precision(value: _Precision) -> None:
    if value.older is not None:
        torch.set_float32_matmul_precision(value.older)
    for where, precision in zip(_PRECISIONS, value.newer, strict=True):
        torch._C._set_fp32_precision_setter(*where, precision)


_HOOKS: dict[str, dict[int, Any]] = {
    name: value
    for name, value in vars(torch_module).items()
    if name.startswith("_global_") and isinstance(value, dict)
}


def _set_hooks(hooks: list[dict[int, Any]]) -> None:
    for now, before in zip(_HOOKS.values(), hooks, strict=True):
        now.clear()
        now.update(before)


_smallest = 5e-324


IN_EVERY_CALL: tuple[Setting, ...] = (
    Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    Setting("the default device", lambda: _device.CURRENT_DEVICE, torch.set_default_device),
    Setting("grad mode", torch.is_grad_enabled, torch.set_grad_enabled, True),
    _autocast("autocast on the CPU", "cpu", torch.bfloat16),
    _autocast("autocast on the GPU", "cuda", torch.float16),
    Setting("the global hooks of modules", lambda: [dict(hooks) for hooks in _HOOKS.values()], _set_hooks),
    Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "deterministic algorithms",
        _deterministic,
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        (False, False),
    ),
)
"""What a forward pass may change that the very next line of an attack would feel."""

SETTINGS: tuple[Setting, ...] = (
    *IN_EVERY_CALL,
    Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False),
    Setting(
        "the precision of float32 products",
        _precision,
        _set_precision,
        _stated(
            "highest",
            tuple("tf32" if p[0] == "cuda" and p[1] in ("conv", "rnn") else "none" for p in _PRECISIONS),
        ),
    ),
    _attribute("the deterministic flag of cuDNN", torch.backends.cudnn, "deterministic", False),
    _attribute("the benchmark flag of cuDNN", torch.backends.cudnn, "benchmark", False),
    _attribute("whether cuDNN is used", torch.backends.cudnn, "enabled", True),
    _attribute("whether oneDNN is used", torch.backends.mkldnn, "enabled", True),
    Setting(
        "the fast path of transformers",
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.mha.set_fastpath_enabled,
        True,
    ),
    # torch cannot be asked whether numbers below the smallest normal one are taken for zero.
    Setting("the flushing of denormals", lambda: _smallest * 1.0 == 0.0, torch.set_flush_denormal, False),
)
"""Everything of torch that is pinned and put back, but its random numbers."""

_READERS = tuple(setting.read for setting in IN_EVERY_CALL)


def put_back(settings: Sequence[Setting], values: Sequence[Any]) -> list[str]:
    """Give those of `settings` that differ from `values` these values; the names of these settings."""
    changed = [
        (setting, value) for setting, value in zip(settings, values, strict=True) if setting.read() != value
    ]
    for setting, value in changed:
        setting.write(value)
    return [setting.name for setting, _ in changed]


class KeptSettings:
    """A context in which other people's code runs: what it changes of `IN_EVERY_CALL` is put back and noted.

    Its random numbers of torch come from a stream of its own, where `separate_stream` began one: a forward
    pass that seeds torch does not make an attack repeat its noise, and it goes on drawing from call to call.

    Where no guard stands around it, the whole one of the benchmark does, if there is one (`guarded`).

    Parameters
    ----------
    code
        Whose code runs: a model, or a function.
    """

    __slots__ = ("_code", "_random", "_settings", "_whole")

    def __init__(self, code: object) -> None:
        self._code = code

    def __enter__(self) -> None:
        self._whole = guarded(self._code)
        self._whole.__enter__()
        self._settings = [read() for read in _READERS]
        self._random: list[Tensor] | None = None
        if _streams:
            self._random = torch_random_states()
            set_torch_random_states(_streams[-1])

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if [read() for read in _READERS] != self._settings:
            changes.update(dict.fromkeys(put_back(IN_EVERY_CALL, self._settings)))
        if self._random is not None:
            _streams[-1] = torch_random_states()
            set_torch_random_states(self._random)
        self._whole.__exit__(kind, value, traceback)


@dataclass
class Guard:
    """The guard around everything that the benchmark asks of other people's code.

    Attributes
    ----------
    depth
        How many blocks within it are being run.
    whole
        Makes one around the code of a model or function; None where the benchmark is not in use.
    """

    depth: int = 0
    whole: Callable[[Any], AbstractContextManager[None]] | None = None


guard = Guard()


def guarded(code: object) -> AbstractContextManager[None]:
    """The whole guard around `code`, a model or a function, where none stands around this call yet."""
    return guard.whole(code) if guard.whole and not guard.depth else nullcontext()


changes: dict[str, None] = {}
"""Names of settings that were changed and put back, in order, until whoever tells of them removes them."""
_streams: list[list[Tensor]] = []


@contextmanager
def separate_stream(seed: int) -> Iterator[None]:
    """For a block, have calls within `KeptSettings` draw from a stream of their own, begun with `seed`."""
    before = torch_random_states()
    seed_torch(seed)
    _streams.append(torch_random_states())
    set_torch_random_states(before)
    depth = len(_streams)
    try:
        yield
    finally:
        del _streams[depth - 1 :]


def torch_random_states() -> list[Tensor]:
    """States of torch's generators: the CPU's, then those of the GPUs in use."""
    return [generator.get_state() for generator in _generators()]


def set_torch_random_states(states: list[Tensor]) -> None:
    """Put `states` back. A GPU that came into use since is left alone."""
    for generator, state in zip(_generators(), states, strict=False):
        generator.set_state(state)


def seed_torch(seed: int) -> None:
    """Seed the CPU's generator and, where GPUs are in use, theirs; at once, unlike ``torch.manual_seed``."""
    for generator in _generators():
        generator.manual_seed(seed % 2**63)


def _generators() -> list[torch.Generator]:
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [torch.default_generator, *gpus]
