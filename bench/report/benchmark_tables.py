"""Tables from pytest-benchmark's JSON files: what was timed, against which baseline, and the goals. No torch.

``python -m robustode.bench.report.benchmark_tables FILE.json`` writes the table ``FILE.md`` beside the file,
and those of its rows that have a goal as ``FILE-goals.md``.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..._errors import InvalidArgument
from ..records.atomic import write_atomically
from ..records.record_file import Damage
from .benchmark_timing import HEADS, WORDS, Timing, timing
from .html.template import template
from .markdown import markdown_escaped, markdown_table

READING = (
    "Ratio: the baseline's time over that of what is timed, so above 1 is faster; the median over pairs "
    "that were timed one right after the other in one run, with its quartiles. Peak memory has a ratio of "
    "bytes. Overhead is the time beyond that of the baseline, as a share of it."
)


@dataclass(frozen=True, kw_only=True)
class BenchmarkFile:
    """One file: its benchmarks, and the machine, devices, versions, commit, date and commands behind them."""

    name: str
    machine: str
    timings: tuple[Timing, ...]
    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()


def add_benchmarks(folder: Path, file: Path) -> None:
    """Copy a pytest-benchmark JSON into ``<folder>/benchmarks/``, where every later report finds it.

    Raises
    ------
    InvalidArgument
        When it cannot be read, is no such file, or has the name of another one there; nothing is written
        then.
    """
    read_file(file)
    target, data = folder / "benchmarks" / file.name, file.read_bytes()
    if target.exists() and target.read_bytes() != data:
        raise InvalidArgument(f"{target} is there already with other content: delete it, or rename {file}")
    write_atomically(target, data)


def read_benchmarks(folder: Path) -> tuple[list[BenchmarkFile], list[Damage]]:
    """Read ``<folder>/benchmarks/*.json``, by name; what cannot be used is returned as problems."""
    files: list[BenchmarkFile] = []
    problems: list[Damage] = []
    for path in sorted((Path(folder) / "benchmarks").glob("*.json")):
        try:
            files.append(_parse(path.read_text(encoding="utf-8"), path.name))
        except Exception as error:
            reason = f"not a pytest-benchmark file: {type(error).__name__}: {error}"
            problems.append(Damage(path=path, reason=reason))
    return files, problems


def read_file(file: Path) -> BenchmarkFile:
    """Read one pytest-benchmark JSON.

    Raises
    ------
    InvalidArgument
        When it cannot be read or is no such file.
    """
    try:
        return _parse(file.read_text(encoding="utf-8"), file.name)
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}") from None
    except Exception as error:
        raise InvalidArgument(
            f"{file} is not a pytest-benchmark file ({type(error).__name__}: {error})"
        ) from None


def benchmarks_markdown(files: Sequence[BenchmarkFile]) -> str:
    """Write the tables as GitHub Markdown, each under what made it."""
    parts = ["# Benchmarks", "", READING, ""]
    for file in files:
        parts += [f"## {markdown_escaped(file.name)}", ""]
        parts += [f"- {markdown_escaped(name)}: {markdown_escaped(value)}" for name, value in file.facts]
        if file.commands:
            parts += ["", "```sh", *(" ".join(command.split()) for command in file.commands), "```"]
        parts += ["", *_table(file.timings), ""]
    return "\n".join(parts)


def tables(file: BenchmarkFile) -> dict[str, str]:
    """The Markdown files of a benchmark file, by name: its table, and the rows that have a goal."""
    goals = _table([timing for timing in file.timings if timing.goal is not None])
    stem = Path(file.name).stem
    return {f"{stem}.md": benchmarks_markdown([file]), f"{stem}-goals.md": "\n".join([*goals, ""])}


def _table(timings: Iterable[Timing]) -> list[str]:
    words = [at for at, head in enumerate(HEADS) if head in WORDS]
    rows = [[markdown_escaped(c) if at in words else c for at, c in enumerate(t.cells())] for t in timings]
    return markdown_table(HEADS, rows, left=words)


def benchmarks_page(files: Sequence[BenchmarkFile]) -> str:
    """Render the same tables as one HTML text that needs no network and no other file."""
    text = template("benchmarks.html.j2").render(files=files, heads=HEADS, words=WORDS, reading=READING)
    return str(text)


def _parse(text: str, name: str) -> BenchmarkFile:
    body = json.loads(text)
    timings = tuple(sorted(map(timing, body["benchmarks"]), key=lambda t: t.group))  # else as they were run
    devices = sorted({t.device for t in timings} - {""})
    if len(devices) > 1:
        timings = tuple(replace(t, what=f"{t.what or t.name}, {t.device}") for t in timings)
    machine = _machine(body.get("machine_info") or {})
    versions = (body.get("environment") or {}).get("versions") or {}
    command = str(body.get("command") or "")
    goals = [t.met for t in timings if t.goal is not None]
    facts = {
        "Device": " and ".join(devices),
        "Machine": machine,
        "Versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "Commit": _commit(body.get("commit_info") or {}),
        "Date": str(body.get("datetime") or "")[:10],
        "Goals": f"{goals.count(True)} of {len(goals)} met" if goals else "",
    }
    return BenchmarkFile(
        name=name,
        machine=machine,
        timings=timings,
        facts=tuple((name, value) for name, value in facts.items() if value),
        commands=(command, *_table_command(command)) if command else (),
    )


def _machine(info: Mapping[str, Any]) -> str:
    cpu = info.get("cpu")
    brand = str(cpu.get("brand_raw") or "") if isinstance(cpu, dict) else ""
    python = f"Python {info['python_version']}" if info.get("python_version") else ""
    system = " ".join(str(info[key]) for key in ("system", "release") if info.get(key))
    return " · ".join(part for part in (brand or str(info.get("machine") or ""), system, python) if part)


def _commit(info: Mapping[str, Any]) -> str:
    changed = ", with changes that are not committed" if info.get("dirty") else ""
    return f"{info['id']}{changed}" if info.get("id") else ""


def _table_command(command: str) -> list[str]:
    """The command that makes the table of the file that `command` writes."""
    files = [a.partition("=")[2] for a in shlex.split(command) if a.startswith("--benchmark-json=")]
    return [f"python -m robustode.bench.report.benchmark_tables {shlex.quote(files[-1])}"] if files else []


def main(arguments: Sequence[str]) -> int:
    """Write the tables of one file beside it; returns the exit status, 2 for a file that cannot be used."""
    if len(arguments) != 1:
        print("usage: python -m robustode.bench.report.benchmark_tables FILE.json", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        file = read_file(path)
    except InvalidArgument as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = tables(file)
    if foreign := [name for name, text in made.items() if not _is_ours(path.with_name(name), text)]:
        print(f"error: {path.with_name(foreign[0])} is another file: move it elsewhere", file=sys.stderr)
        return 2
    for name, text in made.items():
        write_atomically(path.with_name(name), text.encode())
        print(f"wrote {path.with_name(name)}")
    return 0


def _is_ours(path: Path, text: str) -> bool:
    """Whether nothing else than a table is at `path`: it begins as `text` does."""
    begin = text.partition("\n")[0].encode()
    return not path.exists() or path.read_bytes().startswith(begin)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
