"""The arguments of the Python interface and the values of presets, checked in one place, strictly.

What they may be is said by their annotations, with the types of this module for numbers. Numbers of numpy
and tensors of one element count as the Python numbers that they hold; booleans and texts never count as
numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Hashable
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, Strict, TypeAdapter, ValidationError

from ._errors import InvalidArgument

P = ParamSpec("P")
T = TypeVar("T")


def plain(value: Any) -> Any:
    """The Python number in a number of numpy, or in an array or tensor without axes; others unchanged."""
    item = getattr(value, "item", None)
    return item() if getattr(value, "ndim", None) == 0 and callable(item) else value


def _as_set(names: Any) -> Any:
    return frozenset(names) if isinstance(names, set | list | tuple) else names


Whole = Annotated[int, BeforeValidator(plain), Strict()]
"""A whole number."""
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, BeforeValidator(plain), Strict()]
"""Any number, also an infinite one or NaN."""
Real = Annotated[Number, Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
if TYPE_CHECKING:
    Names: TypeAlias = Collection[str]
else:
    Names = Annotated[frozenset[str], BeforeValidator(_as_set)]
    """Names in a set, list or tuple."""
Flag = Annotated[bool, BeforeValidator(plain), Strict()]
"""True or False."""

_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)
_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "True or False",
    "string_type": "text",
    "path_type": "a path",
    "callable_type": "a function",
    "finite_number": "finite",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "is_instance_of": "a {class}",
    "literal_error": "{expected}",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a tuple",
    "list_type": "a list",
    "frozen_set_type": "a list or set",
    "too_short": "of at least {min_length} entries",
    "sequence_str": "a list and not text",
}


def check_value(name: str, value: Any, kind: Any) -> Any:
    """Return `value` as what `kind`, an annotation, says: a number as Python's, anything else unchanged.

    Raises
    ------
    InvalidArgument
        When it is something else; the message begins with `name`.
    """
    return _check(name, value, _adapter(kind))


class ArgumentCheck:
    """Checks the arguments of one function by their annotations, see `check_value`.

    Missing and unknown arguments are a `TypeError`, as in Python.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._signature = function, inspect.signature(function)

    def __call__(self, args: Any, kwargs: Any) -> inspect.BoundArguments:
        """The arguments, those given alone; raises `InvalidArgument` for a wrong one."""
        bound = self._signature.bind(*args, **kwargs)
        adapters = _of(self._function)
        for name, value in bound.arguments.items():
            if name in adapters:
                bound.arguments[name] = _check(name, value, adapters[name])
        return bound


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Have `function` check its arguments before anything else: see `ArgumentCheck`."""
    check = ArgumentCheck(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = check(args, kwargs)
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(instance: Any, what: str) -> None:
    """Check the fields of a dataclass by their annotations, as `check_value` does; for ``__post_init__``.

    `what` stands before the name of a wrong one, such as "threat fgsm-linf".
    """
    adapters = _of(cast(Hashable, type(instance)))
    for each in dataclasses.fields(instance):
        if each.name in adapters:
            value = getattr(instance, each.name)
            object.__setattr__(
                instance, each.name, _check(f"{what}: {each.name}", value, adapters[each.name])
            )


def is_scalar(kind: Any) -> bool:
    """Whether `kind`, an annotation, admits numbers, texts, True, False and None alone."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType, Annotated):
        return all(map(is_scalar, parts if get_origin(kind) is not Annotated else parts[:1]))
    return get_origin(kind) is Literal or kind in (int, float, bool, str, type(None))


@functools.cache
def _of(annotated: Any) -> dict[str, TypeAdapter[Any]]:
    """What checks each annotated argument or field; one of any kind is not checked."""
    hints = get_type_hints(annotated, include_extras=True)
    names = [name for name, kind in hints.items() if kind is not Any and name != "return"]
    return {name: _adapter(hints[name]) for name in names}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if dataclasses.is_dataclass(kind):  # it has checked its own fields
        return TypeAdapter(InstanceOf[kind])  # type: ignore[misc]
    return TypeAdapter(kind, config=_CONFIG)


def _check(name: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    try:
        found = adapter.validate_python(plain(value))
    except ValidationError as error:
        raise InvalidArgument(_line(name, value, error)) from None
    return found if isinstance(found, bool | int | float) else value


def _line(name: str, value: Any, error: ValidationError) -> str:
    """What is wrong in one line: ``samples must be at least 1, not 0``."""
    errors = error.errors(include_url=False)
    reasons = [_WANTED.get(each["type"], each["msg"]).format(**each.get("ctx", {})) for each in errors]
    if len(errors) == 1 and all(isinstance(part, int) for part in errors[0]["loc"]):
        name += "".join(f"[{part}]" for part in errors[0]["loc"])
        value = errors[0]["input"]
    return f"{name} must be {' or '.join(dict.fromkeys(reasons))}, not {_shown(plain(value))}"


def _shown(value: Any) -> str:
    if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
        return type(value).__name__
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
