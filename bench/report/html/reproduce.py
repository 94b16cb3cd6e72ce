"""The command that makes a row of the leaderboard again. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from ...config.preset import preset_names
from ...records.headline import Headline
from ...records.record import Record

_FILE = re.compile(r"^[\w./-]+\.py:\w+$")


def command(headline: Headline, records: Sequence[Record]) -> tuple[str, str]:
    """The command line that makes the records of one row, and what to know before running it.

    Parameters
    ----------
    records
        The records of one model, dataset and recipe that count.

    Returns
    -------
    command, note
        The command is empty where the folder does not say by which preset it was made.
    """
    if not headline.preset:
        return "", "The results folder does not say by which preset it was made."
    cell, notes = records[0].cell, []
    card = next((r.card for r in records if r.cell.kind == "training"), {})
    if headline.preset not in preset_names():
        notes.append(f"{headline.preset}.toml stands for the file of the preset {headline.preset}.")
    model, summary = cell.model, str(card.get("summary") or "")
    if file := str(card.get("file") or (summary if _FILE.match(summary) else "")):
        model = file
        notes.append("The model comes from a file of whoever ran it.")
    given = card.get("given")
    weights = str(given["file"]) if isinstance(given, Mapping) else None
    if weights:
        notes.append("So do its weights, which the checkpoint in this folder keeps.")
    seeds = sorted({r.cell.training_seed for r in records if r.cell.kind != "throughput"} or {0})
    count = seeds[-1] + 1
    if seeds != list(range(count)):
        notes.append(f"Training seeds {', '.join(map(str, seeds))} are behind this row.")
    devices = sorted({str(r.environment.get("device", "")) for r in records if r.cell.kind == "accuracy"})
    if any(devices):
        where = ", ".join(filter(None, devices))
        notes.append(f"Accuracies here are from {where}; another device or library version rounds otherwise.")
    commits = {str(r.environment["commit"])[:12] for r in records if r.environment.get("commit")}
    if commits:
        notes.append(f"Made at commit {', '.join(sorted(commits))}.")
    return run_line(headline.preset, model, count, weights), " ".join(notes)


def run_line(preset: str, model: str, seeds: int, weights: str | None = None) -> str:
    """``robustode run`` of one model; `weights` is the file of weights that were given, not trained."""
    chosen = preset if preset in preset_names() else f"{preset}.toml"
    how = ["--weights", weights] if weights else ["--seeds", str(seeds)]
    return shlex.join(["robustode", "run", "--preset", chosen, "--models", model, *how])
