"""Which weight of a file is which of the model: names that differ by a wrapper, and weights that are tied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..._errors import CheckpointError

WRAPPERS = ("module", "_orig_mod")
"""What `DataParallel` and `torch.compile` add to names."""
MAX_SHOWN = 3


def fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """`tensors` under the names of `expected`, the state of a model, and a note of what was changed.

    Names may differ by a wrapper, anywhere, or by one prefix that all of them have, such as ``model.``. Of
    weights that are one tensor in the model a file may hold one alone. Without such a reading the names
    stay; `differences` says what does not fit.
    """
    readings = _readings(list(tensors), list(expected))
    taken_off, names = max(readings, key=lambda reading: len(reading[1].keys() & expected.keys()))
    found = {name: tensors[old] for name, old in names.items()}
    note = f"{taken_off!r} is taken off its names" if taken_off else ""
    shared = [name for name in expected if name not in found and _partner(name, expected, found)]
    for name in shared:
        found[name] = found[_partner(name, expected, found)].clone()
    if shared and found.keys() == expected.keys():
        note = f"{note}; " * bool(note) + f"{_listed(shared)} taken from the weights they are tied to"
    return found, note


def differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How names, shapes and dtypes differ, and which tied weights contradict each other; a line for each."""
    wrong = [
        *_list_names("it lacks", [name for name in expected if name not in tensors]),
        *_list_names("the model has no", [name for name in tensors if name not in expected]),
    ]
    for name in sorted(expected.keys() & tensors.keys()):
        for what in ("shape", "dtype"):
            found, wanted = (_text(getattr(source[name], what)) for source in (tensors, expected))
            if found != wanted:
                wrong.append(f"{name} has {what} {found}, in the model {wanted}")
        other = _partner(name, expected, {one: t for one, t in tensors.items() if one < name})
        if other and tensors[other].shape == tensors[name].shape and not _same(tensors[other], tensors[name]):
            wrong.append(f"{other} and {name} differ, and are one tensor in the model")
    return wrong


def _readings(names: list[str], expected: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Ways to read `names`: what is taken off, and the name in the file by that in the model."""
    yield "", {name: name for name in names}
    known = {_unwrapped(name): name for name in expected}
    own = {_unwrapped(name): name for name in names}
    if len(own) < len(names) or len(known) < len(expected):
        return
    worn = [f"{wrapper}." for wrapper in WRAPPERS if any(wrapper in name.split(".") for name in names)]
    yield " and ".join(worn), {known.get(name, name): old for name, old in own.items()}
    parts = next(iter(own), "").split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count]) + "."
        if all(name.startswith(prefix) for name in own):
            short = {name.removeprefix(prefix): old for name, old in own.items()}
            yield prefix, {known.get(name, name): old for name, old in short.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _partner(name: str, expected: Mapping[str, Tensor], among: Mapping[str, Tensor]) -> str:
    """Another of the names `among` that is the same tensor as `name` in the model; "" without one."""
    where = _place(expected[name])
    tied = (
        other for other in among if other != name and other in expected and _place(expected[other]) == where
    )
    return next(tied, "") if expected[name].numel() else ""


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else one.equal(other)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"{', '.join(names[:MAX_SHOWN])}{more}"


def _list_names(what: str, names: list[str]) -> list[str]:
    return [f"{what} {_listed(names)}"] if names else []


def _text(value: object) -> str:
    return str(tuple(value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")


def require_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: str) -> None:
    """Raise `CheckpointError` with the first `differences`, in one line, where there are any."""
    if wrong := differences(tensors, expected):
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(sorted(wrong)[:MAX_SHOWN])}")
