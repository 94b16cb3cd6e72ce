"""The command that makes a row of the leaderboard again. No torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from .headline import Headline
from .preset import preset_names
from .records import Record

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
    preset = headline.preset
    if preset not in preset_names():
        preset = f"{preset}.toml"
        notes.append(f"{preset} stands for the file of the preset {headline.preset}.")
    model, summary = cell.model, str(card.get("summary") or "")
    if _FILE.match(summary):
        model = summary
        notes.append("The model comes from a file of whoever ran it.")
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
    words = ["robustode", "run", "--preset", preset, "--models", model, "--seeds", str(count)]
    return shlex.join(words), " ".join(notes)
