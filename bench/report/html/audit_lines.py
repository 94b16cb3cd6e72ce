"""The lines of an audit sheet, as plain data for the page. No torch."""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import quote

from ...audits.outcome import Finding
from ...audits.sheet import Sheet
from ..plots.audit_plot import plot


def audit_lines(sheet: Sheet | None) -> list[dict[str, Any]]:
    """One line a check and training seed; a plot for one seed of each check, a flagged one if any is."""
    if sheet is None:
        return []
    drawn: dict[str, Finding] = {}
    for finding in sheet.findings:
        if finding.name not in drawn or (finding.counts_against and not drawn[finding.name].counts_against):
            drawn[finding.name] = finding
    return [
        {
            "name": finding.name,
            "title": finding.title,
            "seed": finding.seed,
            "verdict": "explained flag" if finding.verdict == "flag" and finding.exempt else finding.verdict,
            "bad": finding.counts_against,
            "value": _number(finding.value, finding.unit),
            "threshold": _number(finding.threshold, finding.unit),
            "sentence": finding.sentence,
            "exempt": finding.exempt if finding.verdict == "flag" else "",
            "uri": svg_uri(plot(finding)) if drawn[finding.name] is finding else "",
        }
        for finding in sheet.findings
    ]


_SAFE = " !()*,-./:;=?@[]^_{}|~$+"
_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_ESCAPES = str.maketrans({chr(code): quote(chr(code), safe=_SAFE) for code in range(128)} | {"\n": " "})


def _number(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return ""
    if unit == "share":
        return f"{100 * value:.3g}%"
    return f"{value:.4g} {unit}" if unit in ("points", "samples") else f"{value:.4g}"


def svg_uri(svg: bytes) -> str:
    """An SVG as an address that holds it. Percent-encoded: smaller than base64, and it compresses."""
    text = svg.decode().translate(_ESCAPES)
    text = _FOREIGN.sub(lambda found: quote(found[0]), text)
    return f"data:image/svg+xml,{text}" if svg else ""
