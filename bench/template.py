"""The templates of the pages, with the filters that write numbers. No torch."""

from __future__ import annotations

from pathlib import Path

import jinja2

from .text import count, duration, percent


def template(name: str) -> jinja2.Template:
    """The template ``templates/<name>``: markup in values is escaped, an unknown name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"duration": duration, "percent": percent, "count": count}
    return environment.get_template(name)
