"""The details of one model on the page: settings, certificates, audits, and how to reproduce it. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ...records.headline import Headline
from ...records.held_out import why_not_trained
from ...records.latest import training_card
from ...records.predictions import unanswered
from ...records.record import Record
from ..certificates import CERTIFICATE, SMOOTHING
from ..style import NORMS
from ..text import missing, percent, time_text, value_text
from .audit_lines import AuditLine
from .citation import bibtex, linked
from .reproduce_command import command

_METHODS = {CERTIFICATE: "Lipschitz bound", SMOOTHING: "randomised smoothing"}
_CERTIFIED = ("certified_accuracy", "certified_accuracy_full")


def sheet(
    row: Any,
    records: Sequence[Record],
    headline: Headline,
    *,
    anchor: str,
    certificates: Sequence[Mapping[str, Any]],
    audits: Sequence[AuditLine] = (),
) -> dict[str, Any]:
    """The sheet of one row for the template.

    Parameters
    ----------
    row
        A row of the leaderboard with the column `label`, as a named tuple.
    records
        Its records.
    certificates
        Its `certificates`.
    audits
        Its `audit_lines`.
    """
    card = training_card(records)
    cell = records[0].cell
    training = sorted((r for r in records if r.cell.kind == "training"), key=lambda r: r.cell.training_seed)
    claims = card.get("claims") or []
    expected = card.get("expected_failures") or {}
    reference = str(card.get("reference") or "")
    line, note = command(headline, records)
    return {
        "label": row.label,
        "anchor": anchor,
        "dataset": row.dataset,
        "rank": row.rank,
        "status": row.status,
        "untrained": [
            (r.cell.training_seed, reason)
            for r in training
            if r.status == "ok" and (reason := why_not_trained(r))
        ],
        "summary": str(card.get("summary") or ""),
        "reference": linked(reference),
        "bibtex": bibtex(row.model, reference),
        "command": line,
        "command_note": note,
        "claims": [str(c) for c in claims] if isinstance(claims, list | tuple) else [str(claims)],
        "expected": {str(k): str(v) for k, v in expected.items()} if isinstance(expected, Mapping) else {},
        "solver": str(card.get("solver") or ""),
        "settings": {"Hyperparameters": _pairs(cell.hyperparameters), "Recipe": _pairs(cell.recipe)},
        "flows": [(r.cell.training_seed, flow) for r in training if (flow := _flow(r))],
        "certificates": list(certificates),
        "no_certificate": _absent(records, "certificate", "no_certificate"),
        "absent": [
            (what, line)
            for what, kind, entry in (
                ("No trajectories", "dynamics", "no_dynamics"),
                ("No timing of ODE blocks", "throughput", "no_flow"),
                ("No timing of a training step", "throughput", "no_step"),
            )
            for line in _absent(records, kind, entry)
        ],
        "no_answer": _no_answer(records),
        "audits": audits,
        "parameters": "" if missing(row.parameters) else f"{int(row.parameters):,}",
        "last_epoch": cell.recipe.get("select") == "last",
        "version": cell.model_version,
        "seeds": sorted({r.cell.training_seed for r in records}),
        "training": [_training(record) for record in training if record.status == "ok"],
        "failures": [(r.cell.label(), r.status, r.error or "") for r in records if r.status != "ok"],
    }


def _no_answer(records: Sequence[Record]) -> list[str]:
    """How many samples the model gave no answer for, and how often no gradient, a line for each attack.

    And how many were left out of timings and trajectories.
    """
    found: dict[tuple[str, float], list[int]] = {}
    for record in records:
        if record.cell.kind == "accuracy" and record.status == "ok":
            silent = unanswered(record.outcomes)
            counts = (int(silent.sum()), silent.size, int(record.measures.get("nonfinite_gradients", 0)))
            total = found.setdefault((record.cell.threat, record.cell.strength), [0, 0, 0])
            total[:] = [a + b for a, b in zip(total, counts, strict=True)]
    lines = []
    for (threat, strength), (silent_count, size, gradients) in sorted(found.items()):
        what = threat if threat == "clean" else f"{threat} {strength:g}"
        if silent_count:
            lines.append(f"{what}: no answer for {silent_count:,} of {size:,} samples, which count as broken")
        if gradients:
            lines.append(f"{what}: {gradients:,} gradients were not finite and taken for zero")
    left_out: dict[str, int] = defaultdict(int)
    for record in records:
        if count := int(record.measures.get("left_out", 0)):
            left_out[record.cell.threat] = max(left_out[record.cell.threat], count)
    return lines + [
        f"{what}: {count:,} sample{'s' * (count > 1)} without an answer left out"
        for what, count in sorted(left_out.items())
    ]


def _absent(records: Sequence[Record], kind: str, entry: str) -> list[str]:
    """Why records of a kind hold nothing, a line for each reason: its method and seeds where these differ.

    The reason stands in the records themselves, under `entry` of their cards, or is their error.
    """
    ours = [record for record in records if record.cell.kind == kind]
    seeds_of: dict[tuple[str, str], set[int]] = {}
    for record in ours:
        failed = f"{record.status}: {record.error}" if record.status != "ok" and kind == "certificate" else ""
        if reason := str(record.card.get(entry) or failed):
            method = _METHODS.get(record.cell.threat, "")
            seeds_of.setdefault((method, reason), set()).add(record.cell.training_seed)
    every = {record.cell.training_seed for record in ours}
    return [
        f"{f'{method}: ' if method else ''}{reason}"
        + (f" (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))})" if seeds != every else "")
        for (method, reason), seeds in sorted(seeds_of.items())
    ]


def certificates(summary: pd.DataFrame) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Certified accuracies by (dataset, model, recipe), as text with what is behind each."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for f in summary[summary["statistic"].isin(_CERTIFIED)].to_dict("records"):
        smoothed = f["threat"] != CERTIFICATE
        over = (
            "all test samples with a certificate" if f["statistic"] == _CERTIFIED[1] else "attacked samples"
        )
        found.setdefault((f["dataset"], f["model"], f["recipe"]), []).append(
            {
                "what": f"{NORMS.get(f['norm'], f['norm'])}, ε = {f['strength']:g}",
                "how": f["protocol"].partition(", ")[2] if smoothed else "Lipschitz bound",
                "value": percent(f["value"]),
                "interval": f"{percent(f['low'])} – {percent(f['high'])}",
                "over": over,
                "samples": f"{int(f['samples']):,}",
                "seeds": int(f["seeds"]),
            }
        )
    return found


def environments(records: Iterable[Record]) -> list[list[tuple[str, str]]]:
    """Each different environment of the records once, the time of writing left out."""
    found = {
        tuple(_pairs({k: v for k, v in r.environment.items() if k != "created" and v is not None}))
        for r in records
    }
    return [list(one) for one in sorted(found) if one]


def _flow(record: Record) -> list[tuple[str, str]]:
    """Lipschitz bounds and contraction constants of the trained ODE blocks."""
    others = ("best_epoch", "parameters")
    return [(name, f"{value:.4g}") for name, value in sorted(record.measures.items()) if name not in others]


def _training(record: Record) -> dict[str, Any]:
    curve = {name: np.asarray(values, float).ravel() for name, values in record.outcomes.items()}
    epochs = max((values.size for values in curve.values()), default=0)
    chosen = record.measures.get("best_epoch")
    # Ten epochs at most, the first and the last among them.
    rows = sorted({round(i) for i in np.linspace(0, epochs - 1, min(10, epochs))}) if epochs else []

    def at(name: str, i: int) -> float | None:
        values = curve.get(name)
        return float(values[i]) if values is not None and i < values.size and np.isfinite(values[i]) else None

    names = ("train_loss", "validation_loss", "validation_accuracy")
    return {
        "seed": record.cell.training_seed,
        "epochs": epochs,
        "pretrained": str(record.cell.recipe.get("weights_sha256", "")),
        "best": "" if missing(chosen) else f"{chosen:g}",
        "seconds": time_text(record.seconds),
        "rows": [(i + 1, *(at(name, i) for name in names)) for i in rows],
    }


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), value_text(values[name])) for name in sorted(values)]
