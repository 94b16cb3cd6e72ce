"""What is wrong with a preset, or a table of it: all of it in one line."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..._registry import unknown_name


def mistakes(error: ValidationError, table: type[BaseModel]) -> str:
    """All mistakes in one line: keys that are unknown, keys that are missing, values that are wrong.

    `table` is what was validated.
    """
    found = error.errors()
    unknown = [_unknown(e["loc"], table) for e in found if e["type"] == "extra_forbidden"]
    missing = [repr(_where(e["loc"])) for e in found if e["type"] == "missing"]
    wrong = [
        f"{_where(e['loc'])} = {e['input']!r}: {e['msg'].lower()}"
        for e in found
        if e["type"] not in ("extra_forbidden", "missing")
    ]
    if len(missing) == 1:
        unknown.append(f"key {missing[0]} is missing")
    elif missing:
        unknown.append(f"keys {', '.join(missing)} are missing")
    return "; ".join(unknown + wrong)


def _where(path: tuple[int | str, ...]) -> str:
    path = tuple(part for part in path if isinstance(part, int) or "[" not in part)  # without unions
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _unknown(path: tuple[int | str, ...], table: type[BaseModel]) -> str:
    *parents, key = path
    inside = f" (in {'.'.join(map(str, parents))})" if parents else ""
    return f"{unknown_name('key', str(key), _keys(table, parents))}{inside}"


def _keys(table: type[BaseModel], path: list[Any]) -> list[str]:
    for part in path:
        if isinstance(part, int) or part not in table.model_fields:
            continue
        stack = [table.model_fields[part].annotation]
        while stack:
            annotation = stack.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                table = annotation
                break
            stack.extend(get_args(annotation))
    return list(table.model_fields)
