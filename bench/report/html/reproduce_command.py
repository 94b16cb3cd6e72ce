"""The command that reproduces a row of the leaderboard. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from ...config.preset import preset_names
from ...records.headline import Headline
from ...records.latest import training_card
from ...records.record import Record

AGAIN = "again"
"""The folder that the command makes: in this one nothing would be left to do."""

_FILE = re.compile(r"^[\w./-]+\.py:\w+$")


def command(headline: Headline, records: Sequence[Record]) -> tuple[str, str]:
    """The command line that reproduces the records of one row, and what to know before running it.

    Parameters
    ----------
    records
        The records of one model, dataset and recipe that count.

    Returns
    -------
    command, note
        The command is empty where the folder does not record its preset.
    """
    if not headline.preset:
        return "", "The results folder does not record its preset."
    notes = [f"The row is made anew in a folder {AGAIN}/; compare it with this one."]
    if headline.preset not in preset_names():
        notes.append(f"Replace {headline.preset}.toml by the path of that preset file.")
    if file := _file(records):
        notes.append(f"The model is defined in {file.partition(':')[0]}, which is not part of robustode.")
    pretrained = training_card(records).get("given")
    weights = str(pretrained["file"]) if isinstance(pretrained, Mapping) else None
    if weights:
        notes.append("The pretrained weights are kept as a checkpoint in this results folder.")
    seeds = _seeds(records)
    if seeds != list(range(len(seeds))):
        notes.append(f"This row has the training seeds {', '.join(map(str, seeds))}.")
    devices = sorted({str(r.environment.get("device", "")) for r in records if r.cell.kind == "accuracy"})
    if any(devices):
        where = ", ".join(filter(None, devices))
        notes.append(
            f"Accuracies were computed on {where}; other devices and library versions round differently."
        )
    commits = {str(r.environment["commit"])[:12] for r in records if r.environment.get("commit")}
    if commits:
        notes.append(f"Commit: {', '.join(sorted(commits))}.")
    return run_line(headline.preset, records, weights), " ".join(notes)


def run_line(preset: str, records: Sequence[Record], weights: str | None = None) -> str:
    """``robustode run`` of the model of these records; empty where the preset is not known.

    Parameters
    ----------
    weights
        The file of pretrained weights, for a model that is not trained.
    """
    if not preset:
        return ""
    chosen = preset if preset in preset_names() else f"{preset}.toml"
    model = _file(records) or records[0].cell.model
    how = ["--weights", weights] if weights else _seed_options(_seeds(records))
    return shlex.join(["robustode", "run", "--preset", chosen, "--models", model, *how, "--out", AGAIN])


def _file(records: Sequence[Record]) -> str:
    """The file that defines the model, ``FILE.py:NAME``; empty for a registered one."""
    card = training_card(records)
    summary = str(card.get("summary") or "")  # where older versions noted it
    return str(card.get("file") or (summary if _FILE.match(summary) else ""))


def _seed_options(seeds: list[int]) -> list[str]:
    if seeds == list(range(len(seeds))):
        return ["--seeds", str(len(seeds))]
    return ["--seed", ",".join(map(str, seeds))]


def _seeds(records: Sequence[Record]) -> list[int]:
    return sorted({r.cell.training_seed for r in records if r.cell.kind != "throughput"} or {0})
