"""Where the paper that a model names can be read. No torch."""

from __future__ import annotations

import re

_URL = re.compile(r"https?://[^\s<>()\[\]{}\"'|\\;,]+")
_ARXIV = re.compile(r"\barxiv[\s:.]*(\d{4}\.\d{4,5})", re.IGNORECASE)
_DOI = re.compile(r"\b10\.\d{4,9}/[^\s<>()\[\]{}\"'|\\;,]+")


def paper_link(reference: str) -> str:
    """Return the address of the first paper in `reference`: its URL, arXiv number or DOI; else empty."""
    patterns = ((_URL, "{}"), (_ARXIV, "https://arxiv.org/abs/{}"), (_DOI, "https://doi.org/{}"))
    found = [
        (match.start(), form, match) for pattern, form in patterns if (match := pattern.search(reference))
    ]
    if not found:
        return ""
    _, form, match = min(found, key=lambda each: each[0])
    return form.format(match.group(match.lastindex or 0).rstrip(".:/"))
