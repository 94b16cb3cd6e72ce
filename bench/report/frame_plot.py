"""Accuracy curves from a frame: what `evaluate`, `load_results` or ``summary.csv`` hold. No torch."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..._errors import InvalidArgument
from .certificates import CERTIFICATE
from .figures import labelled
from .plots.accuracy_curves import draw_curves
from .statistics import wilson
from .style import house_style, styles
from .worst_case import WORST_CASE

_ROW = ["dataset", "model", "recipe"]
_PLACE = [*_ROW, "protocol", "threat", "norm", "strength"]
_NUMBERS = ["statistic", "value", "low", "high"]
_SAMPLES = ["seed", "sample", "outcome", "bound"]


def plot(frame: pd.DataFrame, *, width: float | None = None) -> Figure:
    """Draw accuracy against strength, with a panel for each threat and 95% bands.

    Parameters
    ----------
    frame
        What `robustode.evaluate` or `robustode.load_results` returned, several of these below one another
        (``pandas.concat``), or ``summary.csv`` read by pandas; or those rows of it that are to be drawn.
        Clean accuracy, where it is among them, is where curves start.
    width
        Width of the figure in inches; by default as many panels as there are.

    Returns
    -------
    matplotlib.figure.Figure
        Notebooks show it; ``figure.savefig("curves.pdf")`` stores it.

    Raises
    ------
    InvalidArgument
        When columns are missing, the frame is of several datasets, or holds no accuracy of a threat.

    Examples
    --------
    >>> figure = plot(load_results("results/digits", threats=["clean", "l2"]))  # doctest: +SKIP
    """
    if not isinstance(frame, pd.DataFrame):
        raise InvalidArgument(f"plot takes a pandas.DataFrame, not {type(frame).__name__}")
    if width is not None and not width > 1:
        raise InvalidArgument(f"width must be more than 1 inch, not {width!r}")
    per_sample = "outcome" in frame
    absent = [name for name in [*_PLACE, *(_SAMPLES if per_sample else _NUMBERS)] if name not in frame]
    if absent:
        raise InvalidArgument(
            f"the frame has no column {', '.join(absent)}: plot takes what robustode.evaluate or "
            "robustode.load_results returns, or summary.csv"
        )
    datasets = sorted(frame["dataset"].unique())
    if len(datasets) > 1:
        raise InvalidArgument(f"the frame is of several datasets ({', '.join(datasets)}): select one")
    table = _summary(frame) if per_sample else frame[[*_PLACE, *_NUMBERS]]
    accuracy = table[table["statistic"] == "accuracy"]
    if not (accuracy["threat"] != "clean").any():
        raise InvalidArgument("the frame holds no accuracy under a threat: nothing can be drawn")
    board = labelled(table[_ROW].drop_duplicates())
    table = table.merge(board, on=_ROW)
    certified = table[(table["statistic"] == "certified_accuracy") & (table["threat"] == CERTIFICATE)]
    with house_style():
        return draw_curves(
            table[table["statistic"] == "accuracy"],
            board,
            styles(sorted(board["label"])),
            certified,
            width=width,
        )


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracies, and certified ones at the strengths of worst cases, of a frame of samples."""
    asked = frame[frame["outcome"].notna()]
    asked = asked.assign(
        correct=asked["outcome"] == "correct",
        certified=(asked["bound"] > asked["strength"]).where(asked["bound"].notna()).astype(float),
    )
    for name in _PLACE[:-1]:
        asked[name] = asked[name].astype(object)  # of categories, groups without a sample would be made
    groups = asked.groupby(_PLACE, dropna=False, sort=True)
    found = groups.agg(
        value=("correct", "mean"), certified=("certified", "mean"), samples=("sample", "nunique")
    ).reset_index()
    certified = found[(found["threat"] == WORST_CASE) & found["certified"].notna()]
    found = pd.concat(
        [
            found.assign(statistic="accuracy"),
            certified.assign(
                statistic="certified_accuracy", threat=CERTIFICATE, value=certified["certified"]
            ),
        ],
        ignore_index=True,
    )
    values, samples = found["value"].to_numpy(float), found["samples"].to_numpy(float)
    found["low"], found["high"] = wilson(values * samples, samples)
    found["norm"] = found["norm"].astype(object).where(found["norm"].notna(), None)
    return found[[*_PLACE, *_NUMBERS]]
