"""Tables from pytest-benchmark's JSON files in ``<out>/benchmarks/``. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .._errors import InvalidArgument
from .store import Problem, write_atomically


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One benchmark; times in seconds."""

    group: str
    name: str
    minimum: float
    median: float
    mean: float
    rounds: int


@dataclass(frozen=True, kw_only=True)
class BenchmarkFile:
    """One file: the machine it was taken on and its benchmarks."""

    name: str
    machine: str
    timings: tuple[Timing, ...]


def add_benchmarks(folder: Path, file: Path) -> None:
    """Copy a pytest-benchmark JSON into ``<folder>/benchmarks/``, where every later report finds it.

    Raises
    ------
    InvalidArgument
        When it cannot be read or is no such file; nothing is written then.
    """
    try:
        text = file.read_text(encoding="utf-8")
        _parse(text, file.name)
    except OSError as error:
        raise InvalidArgument(f"--benchmarks {file}: cannot be read: {error.strerror}") from None
    except Exception as error:
        raise InvalidArgument(
            f"--benchmarks {file}: not a pytest-benchmark file ({type(error).__name__}: {error})"
        ) from None
    write_atomically(folder / "benchmarks" / file.name, text.encode())


def read_benchmarks(folder: Path) -> tuple[list[BenchmarkFile], list[Problem]]:
    """Read ``<folder>/benchmarks/*.json``, by name; what cannot be used is returned as problems."""
    files: list[BenchmarkFile] = []
    problems: list[Problem] = []
    for path in sorted((Path(folder) / "benchmarks").glob("*.json")):
        try:
            files.append(_parse(path.read_text(encoding="utf-8"), path.name))
        except Exception as error:
            reason = f"not a pytest-benchmark file: {type(error).__name__}: {error}"
            problems.append(Problem(path=path, reason=reason))
    return files, problems


def _parse(text: str, name: str) -> BenchmarkFile:
    body = json.loads(text)
    timings = [
        Timing(
            group=str(one.get("group") or ""),
            name=str(one["name"]),
            minimum=float(one["stats"]["min"]),
            median=float(one["stats"]["median"]),
            mean=float(one["stats"]["mean"]),
            rounds=int(one["stats"]["rounds"]),
        )
        for one in body["benchmarks"]
    ]
    timings.sort(key=lambda t: (t.group, t.name))
    return BenchmarkFile(name=name, machine=_machine(body.get("machine_info") or {}), timings=tuple(timings))


def _machine(info: dict[str, object]) -> str:
    cpu = info.get("cpu")
    brand = str(cpu.get("brand_raw") or "") if isinstance(cpu, dict) else ""
    python = f"Python {info['python_version']}" if info.get("python_version") else ""
    system = " ".join(str(info[key]) for key in ("system", "release") if info.get(key))
    return " · ".join(part for part in (brand or str(info.get("machine") or ""), system, python) if part)
