"""The plot of an audit, as a small SVG written by hand: the same arrays give the same bytes. No torch.

It is a picture of its own, so its ink follows the colour scheme of the page that embeds it.
"""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from ...audits.audit_record import SeedResult

COLOURS, DASHES = ("#0072B2", "#D55E00", "#009E73"), ("", "5 2", "2 2")
MOST = 120
"""Points of a line that are drawn."""
WIDTH, HEIGHT = 340, 190
LETTER = 4.9
"""Width of a letter, about."""
HUGE = 1e300
"""A larger value is a gap in the line, as an infinite one is."""
_HEAD = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
    f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" font-size="9" fill="currentColor">'
    "<style>svg{color:#1c2024}"
    "@media(prefers-color-scheme:dark){svg{color:#e7e9ec}}</style>"
)


def plot(result: SeedResult) -> bytes:
    """Lines over ``arrays["x"]``, dots where they are few; empty bytes where there is nothing to draw."""
    x = result.arrays.get("x")
    if x is None or x.size < 2:
        return b""
    pick = np.unique(np.linspace(0, x.size - 1, min(MOST, x.size)).astype(int))
    curves = sorted((name, y) for name, y in result.arrays.items() if name != "x" and y.size == x.size)
    lines = {name: np.where(np.abs(y) < HUGE, y, np.nan)[pick] for name, y in curves[: len(COLOURS)]}
    shown = np.concatenate([y[np.isfinite(y)] for y in lines.values()]) if lines else np.array([])
    if not shown.size:
        return b""
    names = str(result.axes[0]).split(", ")
    named = len(names) == x.size
    slanted = named and LETTER * max(map(len, names)) > (WIDTH - 60) / len(names)
    left = max(46.0, LETTER * len(names[0]) - 10) if slanted else 46.0
    bottom = HEIGHT - (14 + 2 * max(map(len, names)) if slanted else 30)
    across = _Axis(x[pick], left, WIDTH - 10.0, margin=0.5 / (len(names) - 1) if named else 0.03)
    up = _Axis(shown, float(bottom), 34.0 if len(lines) > 1 else 20.0, margin=0.06)
    parts = [_HEAD, _text(0, 9, str(result.axes[1]))]
    parts += [_text(left - 5, at + 3, mark, "end") + _grid(left, at) for at, mark in up.ticks()]
    if named:
        for at, name in zip(across(x), names, strict=True):
            parts.append(_text(at, bottom + 13, name, "end" if slanted else "middle", -20 * slanted))
    else:
        parts += [_text(at, bottom + 12, mark, "middle") for at, mark in across.ticks()]
        parts.append(_text((left + WIDTH) / 2, HEIGHT - 4, str(result.axes[0]), "middle"))
    start = 0.0
    for colour, dash, (name, y) in zip(COLOURS, DASHES, lines.items(), strict=False):
        style = f'fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"'
        path = _path(across(x[pick]), up(y), dots=x.size <= 20)
        parts.append(f'<g fill="{colour}"><path {style} d="{path[0]}"/>{path[1]}</g>')
        if len(lines) > 1:
            parts.append(f'<path {style} d="M{start:g} 20h16"/>{_text(start + 20, 23, name)}')
            start = round(start + 32 + LETTER * len(name))
    return "".join([*parts, "</svg>"]).encode()


class _Axis:
    """Values on a straight line from the pixel `first` to the pixel `last`, with round ticks."""

    def __init__(self, values: NDArray[np.float64], first: float, last: float, margin: float) -> None:
        low, high = float(values.min()), float(values.max())
        flat = 0.0 if high - low > 1e-9 * max(abs(low), abs(high), 1e-290) else max(abs(high) / 10, 0.5)
        room = margin * (high - low) + flat
        self.low, self.high, self.first, self.last = low - room, high + room, first, last

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        share = (values - self.low) / (self.high - self.low)
        pixels: NDArray[np.float64] = self.first + share * (self.last - self.first)
        return pixels

    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and mark of the multiples of 1, 2 or 5 times a power of ten; about four."""
        rough = (self.high - self.low) / 4
        power = 10.0 ** np.floor(np.log10(rough))
        step = power * next(k for k in (1, 2, 5, 10) if k * power >= 0.999 * rough)
        marks = step * np.arange(np.ceil(self.low / step), np.floor(self.high / step) + 1)
        return [(float(at), f"{mark + 0.0:.6g}") for at, mark in zip(self(marks), marks, strict=True)]


def _text(x: float, y: float, text: str, anchor: str = "", turn: int = 0) -> str:
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    turned = f' transform="rotate({turn} {x:.0f} {y:.0f})"' if turn else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{anchored}{turned}>{escape(text)}</text>'


def _grid(left: float, at: float) -> str:
    return f'<path stroke="currentColor" opacity=".2" d="M{left:.0f} {at:.1f}H{WIDTH - 10}"/>'


def _path(x: NDArray[np.float64], y: NDArray[np.float64], *, dots: bool) -> tuple[str, str]:
    """A path with gaps where `y` is NaN, and its dots."""
    words, circles, pen = [], [], "M"
    for across, up, drawn in zip(x, y, np.isfinite(y), strict=True):
        if drawn:
            words.append(f"{pen}{across:.1f} {up:.1f}")
            circles.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="2"/>')
        pen = "L" if drawn else "M"
    return "".join(words), "".join(circles) if dots else ""
