"""The templates of the pages, the filters that write numbers, the scripts and styles. No torch."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from ..text import percent

FOLDER = Path(__file__).parents[2] / "templates"
CHARTS = "vendor/uplot"
SCRIPTS = ("tools.js", "table.js", "charts.js", "sheet.js", "compare.js", "page.js")


def template(name: str) -> jinja2.Template:
    """The template ``templates/<name>``: markup in values is escaped, an unknown name is an error."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    """One for all pages: it keeps a compiled template until its file changes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent}
    return environment


def asset(name: str) -> str:
    """The file ``templates/<name>`` as it is."""
    return (FOLDER / name).read_text(encoding="utf-8")


def script() -> tuple[Markup, str]:
    """The page's one script, and its hash for a Content-Security-Policy, by which no other script runs.

    It is the chart library, under its licence, and after it the page's own files.
    """
    licence = f"/*\n{asset(f'{CHARTS}/LICENSE')}*/\n"
    parts = [licence, asset(f"{CHARTS}/uPlot.iife.min.js"), '\n"use strict";\n', *map(asset, SCRIPTS)]
    text = "".join(parts)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Markup(text), f"'sha256-{digest}'"


def chart_style() -> Markup:
    """The style sheet of the chart library."""
    return Markup(asset(f"{CHARTS}/uPlot.min.css"))


_SAFE = " !'()*,-./:;=?@[]^_{}|~$+"  # what may stand in an address and in an attribute between double quotes
_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_ESCAPES = str.maketrans({chr(code): quote(chr(code), safe=_SAFE) for code in range(128)} | {"\n": " "})


def svg_uri(svg: bytes) -> Markup:
    """An SVG as an address that holds it. Percent-encoded: smaller than base64, and it compresses."""
    text = _FOREIGN.sub(lambda found: quote(found[0]), svg.decode().translate(_ESCAPES))
    return Markup(f"data:image/svg+xml,{text}" if svg else "")


def embedded(data: Any) -> Markup:
    """Data as JSON for a ``<script type="application/json">``: nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
