"""The lines of an audit sheet, as plain data for the page. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from ...audits.audit_record import SeedResult
from ...audits.sheet import Sheet
from ..plots.audit_plot import plot
from .template import svg_uri


@dataclass(frozen=True, kw_only=True)
class AuditLine:
    """One check of one training seed, as text.

    Attributes
    ----------
    verdict
        ``pass``, ``flag``, ``explained flag``, ``failed`` or ``not applicable``.
    counts_against
        Whether it withholds a rank.
    explanation
        The model's own reason for a flag.
    plot
        Address of the plot behind it; empty for all but one seed of each check.
    """

    name: str
    title: str
    seed: int
    verdict: str
    counts_against: bool
    value: str
    threshold: str
    sentence: str
    explanation: str
    plot: Markup


@dataclass(frozen=True, kw_only=True)
class AuditBadge:
    """What the audits of one row come to, in a few words.

    Attributes
    ----------
    text, tip
        Beside the model's name, and what is shown where it is pointed at.
    status
        What the row's name has below it when it is not cleared.
    flagged, incomplete
        Whether a check counts against the row or it is not trained; and whether it was not asked all that it
        should be.
    """

    text: str
    tip: str
    status: str
    flagged: bool
    incomplete: bool


def audit_lines(sheet: Sheet | None) -> list[AuditLine]:
    """One line for each check and training seed; a plot for one seed of each check, flagged if any is."""
    if sheet is None:
        return []
    drawn: dict[str, SeedResult] = {}
    for result in sheet.results:
        if result.name not in drawn or (result.counts_against and not drawn[result.name].counts_against):
            drawn[result.name] = result
    return [_line(result, with_plot=drawn[result.name] is result) for result in sheet.results]


def audit_badge(sheet: Sheet | None) -> AuditBadge | None:
    """What a sheet comes to; None where nothing was to be asked."""
    if sheet is None:
        return None
    coverage, against = sheet.coverage(), sorted(sheet.against)
    if not sheet.results and not coverage:
        return None
    reasons = {f.name: f.exempt for f in sheet.results if f.verdict == "flag" and f.exempt}
    tips = {
        "flagged": against,
        "explained": [f"{name} ({reasons[name]})" for name in sorted(sheet.explained)],
        "not asked": sheet.missing if sheet.done else (),
    }
    checks = len({result.name for result in sheet.results})
    said = "; ".join(f"{what}: {', '.join(names)}" for what, names in tips.items() if names)
    return AuditBadge(
        text=sheet.badge() or "none applies",
        tip=said or f"{checks} check{'' if checks == 1 else 's'}",
        status=f"flagged: {', '.join(against)}" if against else "",
        flagged=bool(against) or not sheet.trained,
        incomplete=bool(sheet.missing),
    )


def _line(result: SeedResult, *, with_plot: bool) -> AuditLine:
    explained = result.exempt if result.verdict == "flag" else ""
    return AuditLine(
        name=result.name,
        title=result.title or result.name,
        seed=result.seed,
        verdict="explained flag" if explained else result.verdict.replace("-", " "),
        counts_against=result.counts_against,
        value=_number(result.value, result.unit),
        threshold=_number(result.threshold, result.unit),
        sentence=result.sentence,
        explanation=explained,
        plot=svg_uri(plot(result)) if with_plot else Markup(""),
    )


def _number(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return ""
    if unit == "share":
        return f"{100 * value:.3g}%"
    return f"{value:.4g} {unit}" if unit in ("points", "samples") else f"{value:.4g}"
