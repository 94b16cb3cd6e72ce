"""Test images under each threat with the predictions of a model, in one grid. No torch."""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ...records.headline import Headline
from ...records.predictions import NO_ANSWER
from ...records.record import Record
from ..canvas import font_size, new_figure
from ..described_figure import Draw
from ..style import QUIET, WRONG, strength_name, threat_name

COLUMNS = 8
_GAP = 0.36  # room for the prediction under an image, in image heights


def draw_examples(records: list[Record], headline: Headline, title: str) -> Draw | None:
    """The first test samples (columns) clean and under each threat (rows) of one model.

    Each threat is shown at its reported strength, or the nearest one stored. A wrong prediction has a
    thick frame, a cross and bold type, so that it is seen without colour.

    Returns
    -------
    draw
        None when no record holds examples.
    """
    rows = _chosen(records, headline)
    return partial(_draw, rows, title) if rows else None


def _draw(rows: list[Record], title: str, *, width: float | None = None) -> Figure:
    count = min(COLUMNS, max(record.examples["image"].shape[0] for record in rows))
    height = len(rows) * (1 + _GAP)
    pixels = rows[0].examples["image"].shape[-1]
    apart = max(1, round(0.1 * pixels))  # between images, in pixels, so that a row of them is one image
    step = 1 + apart / pixels
    inch, names = 0.72, 2.45  # an image in inches, and the room for names in images
    if width is not None:
        count = max(1, min(count, int((width - 1.6) / (0.45 * step))))
        inch = min(0.72, (width - 1.6) / (count * step + 0.1))
        names = width / inch - count * step - 0.1
    figure = new_figure(width or inch * (count * step + 2.55), inch * (height + 0.95), layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-names, count * step + 0.1), ylim=(height + 0.05, -0.9))
    ax.axis("off")
    start = 0.1 - names
    ax.text(start, -0.55, title, fontsize=font_size(9.5), fontweight="bold", va="center")
    labels: dict[int, int] = {}
    for r, record in enumerate(rows):
        top = r * (1 + _GAP)
        cell, examples = record.cell, record.examples
        name = threat_name(cell.threat, cell.norm).replace(" noise, paper-exact", " (paper)")
        ax.text(start, top + 0.38, name, va="center", fontsize=font_size(8.5))
        if cell.family != "clean":
            symbol = strength_name(cell.threat, cell.norm)[0]
            ax.text(
                start,
                top + 0.68,
                f"{symbol} = {cell.strength:g}",
                va="center",
                fontsize=font_size(8),
                color=QUIET,
            )
        images = examples["image"][:count]
        strip = _strip(images, apart)
        right_end = strip.shape[1] / pixels
        ax.imshow(strip, extent=(0, right_end, top + 1, top), interpolation="none", aspect="auto", zorder=1)
        for i in range(len(images)):
            left = i * step
            labels.setdefault(i, int(examples["label"][i]))
            said, right = int(examples["prediction"][i]), examples["prediction"][i] == examples["label"][i]
            edge, weight = ("#C9CDD3", 0.6) if right else (WRONG, 2.2)
            ax.add_patch(Rectangle((left, top), 1, 1, fill=False, ec=edge, lw=weight, zorder=2))
            text = f"{said}" if right else f"✗ {'none' if said == NO_ANSWER else said}"
            ink, bold = (QUIET, "normal") if right else (WRONG, "bold")
            ax.text(
                left + 0.5,
                top + 1.16,
                text,
                ha="center",
                va="center",
                color=ink,
                fontweight=bold,
                fontsize=font_size(8),
            )
    for i, label in list(labels.items())[:count]:
        ax.text(i * step + 0.5, -0.18, f"true {label}", ha="center", va="center", fontsize=font_size(8))
    ax.set(xlim=(-names, count * step + 0.1), ylim=(height + 0.05, -0.9))
    return figure


def _chosen(records: list[Record], headline: Headline) -> list[Record]:
    """One record per threat: the lowest seed that has examples, at the strength nearest the reported one."""
    usable = [r for r in records if r.cell.kind == "accuracy" and r.status == "ok" and "image" in r.examples]
    if not usable:
        return []
    seed = min(record.cell.training_seed for record in usable)
    threats: dict[str, dict[float, Record]] = {}
    for record in usable:
        if record.cell.training_seed == seed:
            threats.setdefault(record.cell.threat, {}).setdefault(record.cell.strength, record)
    chosen = []
    for threat, found in threats.items():
        norm = next(iter(found.values())).cell.norm
        chosen.append(found[headline.shown_strength(threat, norm, found)])

    def place(record: Record) -> tuple[bool, bool, bool, str, str]:
        cell = record.cell
        bounded = cell.norm is not None
        return cell.family != "clean", bounded, cell.norm != "linf", cell.norm or "", cell.threat

    return sorted(chosen, key=place)


def _strip(images: NDArray[np.uint8], apart: int) -> NDArray[np.uint8]:
    """Put images, shape (k, c, h, w), beside each other with white between them: (h, width, 3)."""
    white = np.full((images.shape[2], apart, 3), 255, np.uint8)
    parts = [part for image in images for part in (white, _rgb(image))]
    return np.concatenate(parts[1:], axis=1)


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """From (c, h, w) to (h, w, 3); a single channel is repeated, further channels are dropped."""
    channels = image[:3] if image.shape[0] >= 3 else np.repeat(image[:1], 3, axis=0)
    return np.moveaxis(channels, 0, -1)
