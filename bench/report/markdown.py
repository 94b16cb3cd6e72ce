"""GitHub Markdown: a table, and text of which nothing is read as markup. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence


def markdown_table(
    heads: Sequence[str], rows: Iterable[Iterable[str]], *, left: Collection[int] = (0,)
) -> list[str]:
    """The lines of a table; cells are Markdown already.

    Parameters
    ----------
    left
        Columns that are aligned to the left, counted from 0; the others hold numbers.
    """
    ruler = ["---" if at in left else "---:" for at in range(len(heads))]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows)]


def markdown_escaped(text: object) -> str:
    """Escape what Markdown or HTML would read as markup, and keep it on one line."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text) if text != "#" else "#"
