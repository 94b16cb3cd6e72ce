"""What other people's code changed, told to the user once. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..._errors import ForeignCodeWarning

Tell = Callable[[str, Sequence[str]], None]
"""Called with a source, such as ``net.py``, and the names of what it changed; see `sentence`."""

TORCH_SEED = "the seed of torch"
_NOTES = {
    "the default dtype": "what it makes without naming a dtype is float32 here, unlike where it runs alone",
    "the default device": "what it makes without naming a device lies on the CPU here",
    TORCH_SEED: "networks of different training seeds may begin alike",
}


def sentence(source: str, names: Sequence[str]) -> str:
    """What `source` changed and what follows from it, in one line."""
    *most, last = names
    listed = f"{', '.join(most)} and {last}" if most else last
    notes = [note for name, note in _NOTES.items() if name in names]
    return f"{source} changed {listed}, put back" + "".join(f"; {note}" for note in notes)


def _warn(source: str, names: Sequence[str]) -> None:
    warnings.warn(sentence(source, names), ForeignCodeWarning, stacklevel=3)


_tellers: list[tuple[Tell, set[tuple[str, str]]]] = [(_warn, set())]


@contextmanager
def telling(tell: Tell) -> Iterator[None]:
    """For a block, have `tell` called with each change; elsewhere one is a `ForeignCodeWarning`."""
    _tellers.append((tell, set()))
    try:
        yield
    finally:
        _tellers.pop()


def announce(source: str, names: Sequence[str]) -> None:
    """Tell the user what `source` changed, but for what was told of it before in this `telling`."""
    tell, told = _tellers[-1]
    new = [name for name in names if (source, name) not in told]
    told.update((source, name) for name in new)
    if new:
        tell(source, new)
