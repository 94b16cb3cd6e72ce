"""Colours, markers and names in every figure and table: one fixed style per model. No torch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.colors import to_rgb

# seaborn brings scipy, which looks torch up in sys.modules while it is imported and stumbles over the
# None by which a process forbids importing it.
_forbidden = "torch" in sys.modules and sys.modules["torch"] is None
if _forbidden:
    del sys.modules["torch"]
try:
    sns = import_module("seaborn")
finally:
    if _forbidden:
        sys.modules["torch"] = None  # type: ignore[assignment]

# Okabe-Ito and Tol's muted set: told apart under the common colour-vision deficiencies, and none so
# pale that a thin line is lost on white. Each colour has its own marker and dash as well.
_CORE = {
    "resnet": ("#5A5A5A", "s", (4, 1.5)),
    "node": ("#0072B2", "o", ()),
    "h-node": ("#009E73", "^", (5, 1.2, 1.2, 1.2)),
    "ch-node": ("#D55E00", "D", ()),
}
_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933", "#44AA99", "#AA7744")
_MARKERS = ("v", "P", "X", "p", "<", "h", ">", "d")
_DASHES: tuple[tuple[float, ...], ...] = ((), (3, 1.2), (1.2, 1.2), (6, 1.5, 1.2, 1.5, 1.2, 1.5))

NAMED_MODELS = 16  # a legend longer than this cannot be read; the others are drawn in grey
OTHER = "#C8CCD2"  # lines of models that are not named in a figure
INK = "#22262B"
QUIET = "#6B7280"
WRONG = "#D55E00"

RC: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9AA1AB",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "grid.color": "#E6E8EC",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "path.simplify": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "robustode",
    "text.color": INK,
    "xtick.color": "#9AA1AB",
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.color": "#9AA1AB",
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8,
}


def house_style() -> AbstractContextManager[None]:
    """Draw in this style, whatever the user's own settings of matplotlib are."""
    return mpl.style.context(["default", RC])


NORMS = {"linf": "ℓ∞", "l2": "ℓ₂", "l1": "ℓ₁", "l0": "ℓ₀"}
_NOISE = {
    "gaussian": "Gaussian noise",
    "salt-pepper": "Salt-and-pepper noise",
    "uniform": "Uniform noise",
    "paper-gaussian": "Gaussian noise, paper-exact",
    "paper-salt-pepper": "Salt-and-pepper noise, paper-exact",
}
_STRENGTH = {
    "gaussian": ("σ", "standard deviation σ (pixel range = 1)"),
    "salt-pepper": ("p", "fraction of pixels p"),
    "uniform": ("r", "half-width r (pixel range = 1)"),
    "paper-gaussian": ("v", "variance v (normalised image)"),
    "paper-salt-pepper": ("p", "fraction of pixels p"),
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """Colour, marker and dash pattern (seaborn's notation; () is solid) of one model."""

    color: str
    marker: str
    dash: tuple[float, ...]


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each model its style, the same whoever else is there as far as slots allow.

    The four core models have fixed slots. Any other model prefers the slot its name hashes to; when
    that is taken, the one whose hash comes first keeps it and the other takes the next free slot.
    After all colours are used they come again with another marker and dash.
    """
    wanted = set(names)
    found = {
        name: Style(color=color, marker=marker, dash=dash)
        for name, (color, marker, dash) in _CORE.items()
        if name in wanted
    }
    others = sorted(wanted - found.keys(), key=_hash)
    slots = len(_COLOURS)
    taken: set[int] = set()
    for name in others:
        generation = len(taken) // slots
        slot = _hash(name) % slots
        while generation * slots + slot in taken:
            slot = (slot + 1) % slots
        taken.add(generation * slots + slot)
        found[name] = Style(
            color=_COLOURS[slot],
            marker=_MARKERS[(slot + 3 * generation) % len(_MARKERS)],
            dash=_DASHES[(slot + generation) % len(_DASHES)],
        )
    return found


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


_IN_A_NORM = {"worst-case": "Worst case", "curve": "FMN and AutoAttack", "autoattack": "AutoAttack"}


def threat_name(threat: str, norm: str | None = None) -> str:
    """Name a threat for people: ``pgd-linf`` is ``PGD ℓ∞``."""
    if threat in _NOISE:
        return _NOISE[threat]
    if threat == "clean":
        return "Clean"
    if norm is None:
        return threat
    stem = threat.removesuffix(f"-{norm}")
    stem = _IN_A_NORM.get(stem) or (stem.upper() if len(stem) <= 4 else stem)
    return f"{stem} {NORMS.get(norm, norm)}"


def key_name(key: str) -> str:
    """Name a reported key for people: ``linf`` is ``Worst case ℓ∞``, ``gaussian`` is ``Gaussian noise``."""
    return threat_name("worst-case", key) if key in NORMS else threat_name(key)


def certified_name(norm: str) -> str:
    """Name certified accuracy in a norm for people."""
    return f"Certified {NORMS.get(norm, norm)}"


def strength_symbol(key: str) -> str:
    """Return the symbol of a reported key's strength: ``ε`` for a norm, ``σ`` for Gaussian noise."""
    return strength_name(key, key if key in NORMS else None)[0]


def strength_name(threat: str, norm: str | None = None) -> tuple[str, str]:
    """Return the symbol of a strength and its axis label with units."""
    if norm is not None:
        return "ε", f"{NORMS.get(norm, norm)} radius ε (pixel range = 1)"
    return _STRENGTH.get(threat, ("s", "strength s (pixel range = 1)"))


def darker(color: str) -> tuple[float, ...]:
    """Darken a colour until small type in it can be read on white."""
    rgb = np.array(to_rgb(color))
    while rgb @ [0.2126, 0.7152, 0.0722] > 0.33:
        rgb = rgb * 0.92
    return tuple(float(part) for part in rgb)


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour of channels in [0, 1], as WCAG 2.2 defines it."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb[:3]]
    return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))


def readable_on(color: tuple[float, ...]) -> str:
    """The ink, dark or white, that has the higher contrast on a colour (WCAG 2.2, relative luminance)."""
    behind, ink = luminance(color), luminance(to_rgb(INK))
    return INK if (behind + 0.05) / (ink + 0.05) > 1.05 / (behind + 0.05) else "white"


def mixed(color: str, share: float) -> tuple[float, ...]:
    """A colour on white at this opacity, as an opaque colour."""
    return tuple(float(1 - share * (1 - part)) for part in to_rgb(color))
