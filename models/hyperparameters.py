"""The hyperparameters of one model: resolved, as a record holds them, and the call that it was made from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_type_hints

from .._arguments import check_value, is_scalar, plain
from .._errors import InvalidArgument, one_line
from .._registry import unknown_name
from .default_types import like_default
from .recorded_arrays import NotRecordable
from .recorded_values import Codec


class Hyperparameters:
    """What a factory takes besides shape and classes: its defaults, and its model's own values over them.

    Parameters
    ----------
    model
        Name of the model, for messages.
    """

    def __init__(self, model: str, build: Callable[..., Any], own: Mapping[str, Any]) -> None:
        parameters = list(inspect.signature(build).parameters.values())[2:]
        self.model, self.own = model, own
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        factory = inspect.unwrap(build)
        self.kinds: dict[str, Any] = {}
        with suppress(Exception):  # of annotations that cannot be resolved
            self.kinds = get_type_hints(factory, include_extras=True)
        code = getattr(factory, "__code__", None)
        self.codec = Codec(
            str(getattr(factory, "__module__", "")),
            Path(code.co_filename).resolve().parent if code is not None else None,
        )

    def resolve(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults, the model's own values over them, and `overrides` over those."""
        values = dict(self.defaults)
        for name, value in {**self.own, **overrides}.items():
            if name not in values and not self.open_ended:
                raise unknown_name(f"hyperparameter of {self.model}", name, sorted(values))
            with self._naming(name, f"cannot be {value!r}"):
                values[name] = like_default(value, self.defaults.get(name))
            self._check_scalar(name, values[name])
        self.record(values)
        return values

    def _check_scalar(self, name: str, value: Any) -> None:
        """Raise `InvalidArgument` where a number, text or boolean is not what the factory's annotation says.

        Without an annotation a boolean cannot take the place of a number.
        """
        kind, default = self.kinds.get(name), plain(self.defaults.get(name))
        if kind is None and isinstance(default, int | float) and not isinstance(default, bool):
            kind = Any if not isinstance(plain(value), bool) else type(default)
        if kind is not None and is_scalar(kind):
            check_value(f"model {self.model}: hyperparameter {name!r}", value, kind)

    def record(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `values` as JSON."""
        found = {}
        for name, value in values.items():
            with self._naming(name, "cannot be recorded"):
                found[name] = self.codec.encode(value)
        return found

    def arguments(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that `record` was given, sorted by name; names mean what they mean today."""
        for value in (*self.defaults.values(), *self.own.values()):
            with suppress(NotRecordable):
                self.codec.encode(value)
        found = {}
        for name in sorted(recorded):
            with self._naming(name, "cannot be had again"):
                found[name] = like_default(self.codec.decode(recorded[name]), self.defaults.get(name))
        return found

    @contextmanager
    def _naming(self, name: str, what: str) -> Iterator[None]:
        """Say which hyperparameter an error is about."""
        try:
            yield
        except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError, RuntimeError) as error:
            line = f"model {self.model}: hyperparameter {name!r} {what}: {one_line(error)}"
            raise InvalidArgument(line) from None
