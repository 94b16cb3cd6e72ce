"""A dictionary of named things that refuses duplicates and answers a typo with suggestions."""

from __future__ import annotations

import difflib
import re
import weakref
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from ._errors import InvalidArgument, UnknownName

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Named(Protocol):
    """Anything with a read-only ``name``."""

    @property
    def name(self) -> str:
        """Identifier, unique within a registry."""


T = TypeVar("T", bound=Named)


def check_name(name: object, kind: str) -> str:
    """Return `name` when it is safe in a path, a page and a terminal.

    Raises
    ------
    InvalidArgument
        Unless it is 1 to 64 characters from ``a-z 0-9 . _ -``, the first a letter or digit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise InvalidArgument(
            f"{kind} name {name!r} is not allowed: use lower-case letters, digits, '-', '_' and '.', "
            "starting with a letter or digit, at most 64 characters"
        )
    return name


def unknown_name(kind: str, name: str, known: list[str]) -> UnknownName:
    """Build the error for `name`, with the nearest of the `known` names."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return UnknownName(f"unknown {kind} {name!r}: {hint}")


_registries: weakref.WeakSet[Registry[Any]] = weakref.WeakSet()


def registrations() -> set[tuple[Registry[Any], str]]:
    """Everything that is registered now, of every kind: registry and name."""
    return {(registry, name) for registry in _registries for name in registry.names()}


class Registry(Generic[T]):
    """Named items of one kind, in the order they were registered.

    `hint` is added to what is said of an unknown name.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> colours = Registry("colour")
    >>> _ = colours.register(SimpleNamespace(name="red"))
    >>> colours.names()
    ['red']
    """

    def __init__(self, kind: str, hint: str = "") -> None:
        self.kind, self.hint = kind, f" ({hint})" if hint else ""
        self._items: dict[str, T] = {}
        _registries.add(self)

    def register(self, item: T) -> T:
        """Add `item` under ``item.name`` and return it.

        Raises
        ------
        InvalidArgument
            When the name is taken or not allowed.
        """
        name = check_name(item.name, self.kind)
        if name in self._items:
            raise InvalidArgument(f"{self.kind} {name!r} is already registered: choose another name")
        self._items[name] = item
        return item

    def replace(self, item: T) -> None:
        """Put `item` in the place of the one of its name, which must be there."""
        self.get(item.name)
        self._items[item.name] = item

    def unregister(self, name: str) -> None:
        """Forget `name`; used by tests and by notebooks that redefine a model."""
        self._items.pop(name, None)

    def get(self, name: str) -> T:
        """Return the item called `name`; raise `UnknownName` with suggestions otherwise."""
        if name not in self._items:
            error = unknown_name(self.kind, name, self.names())
            raise UnknownName(f"{error}{self.hint}")
        return self._items[name]

    def names(self) -> list[str]:
        """Return every registered name, in order of registration."""
        return list(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)
