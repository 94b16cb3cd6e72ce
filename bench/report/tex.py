"""Text in LaTeX and BibTeX of which nothing is read as markup. No torch."""

from __future__ import annotations

import re

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl is missing from TeX's default encoding
    **{char: f"\\{char}" for char in "{}&%$#_"},
    "ℓ∞": r"$\ell_\infty$",
    "ℓ₂": r"$\ell_2$",
    "ℓ₁": r"$\ell_1$",
    "ℓ₀": r"$\ell_0$",
    "ε": r"$\varepsilon$",
    "σ": r"$\sigma$",
    "±": r"$\pm$",
}
_PATTERN = re.compile("|".join(re.escape(part) for part in sorted(_SPECIAL, key=len, reverse=True)))


def tex_escaped(text: object) -> str:
    """Write any text so that LaTeX prints it: on one line, nothing of it read as a command."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return _PATTERN.sub(lambda match: _SPECIAL[match.group()], " ".join(plain.split()))
