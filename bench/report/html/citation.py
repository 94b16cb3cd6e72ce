"""BibTeX of a model's papers and of robustode, with nothing made up. No torch."""

from __future__ import annotations

import re
from importlib.resources import files

from ..tex import tex_escaped

_ARXIV = re.compile(r"\b(?:arxiv[\s:.]*(?:org/(?:abs|pdf)/)?)(\d{4}\.\d{4,5})", re.IGNORECASE)
_DOI = re.compile(r"\b10\.\d{4,9}/[^\s;,}]+")
_LINK = re.compile(
    r"(?P<url>https://[^\s<>\"'|\\;,]+)|\barxiv[\s:.]*(?P<arxiv>\d{4}\.\d{4,5})"
    r"|(?P<doi>\b10\.\d{4,9}/[^\s<>\"'|\\;,}]+)",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?<![\d./])(?:19|20)\d\d(?![\d.])")
_NAME = re.compile(r"(?:(?:van|von|de|der|da|di|la|le) )*[^\W\d_a-z][\w.'’-]*(?: [^\W\d_a-z][\w.'’-]*){0,2}")
_VENUE = re.compile(r"\d|[A-Z]{3,}|(?i:arxiv|https?:|journal|letters|conference|workshop|inverse)")


def bibtex(model: str, reference: str) -> str:
    """One entry for each paper that `reference` names; papers are separated by semicolons.

    Only what the reference itself says becomes a field: authors (where it starts with surnames), year,
    arXiv identifier, DOI. A title is never guessed; ``note`` holds the reference itself.
    """
    papers = [part.strip().rstrip(".") for part in reference.split(";") if part.strip()]
    entries = [_entry(_key(model, n, len(papers)), paper) for n, paper in enumerate(papers)]
    return "\n\n".join(entries)


def linked(reference: str) -> list[tuple[str, str]]:
    """The reference in pieces of text, each with the address it leads to: a URL, an arXiv number, a DOI."""
    pieces: list[tuple[str, str]] = []
    end = 0
    for found in _LINK.finditer(reference):
        text = found.group().rstrip(".:,)")
        address = text if found["url"] else ""
        if found["arxiv"]:
            address = f"https://arxiv.org/abs/{found['arxiv']}"
        elif found["doi"]:
            address = f"https://doi.org/{text}"
        pieces += [(reference[end : found.start()], ""), (text, address)]
        end = found.start() + len(text)
    return [piece for piece in [*pieces, (reference[end:], "")] if piece[0]]


def own_bibtex() -> str:
    """The entry for robustode itself, as its CITATION.cff says."""
    text = (files("robustode") / "CITATION.cff").read_text(encoding="utf-8")
    pairs = re.findall(r"^[ -]*([a-z-]+): *\"?(.*?)\"? *$", text, re.MULTILINE)
    said = dict(reversed(pairs))
    authors = " and ".join(f"{{{tex_escaped(name)}}}" for key, name in pairs if key == "name")
    return _format(
        "software",
        "robustode",
        {
            "author": authors,
            "title": f"{{{tex_escaped(said['title'])}}}",
            "version": said["version"],
            "year": said["date-released"][:4],
            "license": said["license"],
        },
    )


def _entry(key: str, paper: str) -> str:
    arxiv, doi, year = _ARXIV.search(paper), _DOI.search(paper), _YEAR.search(paper)
    return _format(
        "misc",
        key,
        {
            "author": " and ".join(tex_escaped(name) for name in _authors(paper)),
            "year": year.group() if year else "",
            "eprint": arxiv.group(1) if arxiv else "",
            "archiveprefix": "arXiv" if arxiv else "",
            "url": f"https://arxiv.org/abs/{arxiv.group(1)}" if arxiv else "",
            "doi": doi.group().rstrip(".") if doi else "",
            "note": tex_escaped(paper),
        },
    )


def _authors(paper: str) -> list[str]:
    """The surnames that a reference starts with, up to the first word that is a venue or a year."""
    names: list[str] = []
    for part in (piece.strip() for piece in paper.split(",")):
        if part.endswith(" et al."):
            return [*names, part.removesuffix(" et al."), "others"]
        if _VENUE.search(part) or not _NAME.fullmatch(part):
            break
        names.append(part)
    else:
        return []  # nothing but names: it is no reference
    return names


def _key(model: str, n: int, of: int) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", model).strip("-") + (f"-{n + 1}" if of > 1 else "")


def _format(kind: str, key: str, values: dict[str, str]) -> str:
    lines = [f"  {name:<13} = {{{value}}}," for name, value in values.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
