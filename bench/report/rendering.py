"""Figures to bytes, with other processes' help where there are many; the bytes are the same. No torch."""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..runtime.machine import count_cores
from ..runtime.processes import Send, Worker, can_start_processes
from .described_figure import Draw
from .style import house_style

Drawn = tuple[bytes, bytes]
"""A figure as SVG and as PNG."""
Words = Mapping[str, str]
"""What is said of a figure; it goes through with it."""
Figures = Iterable[tuple[Words, Draw]]
Rendered = Callable[[], list[tuple[Words, Drawn]]]
"""What gives the bytes of figures, in their order, and waits for them where it must."""
Render = Callable[[Figures], Rendered]
"""What turns figures into bytes; all of them are drawn when it returns."""

DPI = 150
MOST = 3
"""Most processes that render: one process makes the figures, and does not keep more of them busy."""


def render_here(figures: Figures) -> Rendered:
    """Render in this process, at once."""
    drawn = [(words, _both(draw())) for words, draw in figures]
    return lambda: drawn


def render_nothing(figures: Figures) -> Rendered:
    """Draw no figure: for who wants only what is said of them."""
    drawn = [(words, (b"", b"")) for words, _ in figures]
    return lambda: drawn


@contextmanager
def rendering_in_processes(workers: int | None = None) -> Iterator[Render]:
    """Render in other processes, and in this one too once somebody waits for the bytes.

    The processes start at once, so that they are ready when the first figure is. What one of them fails at is
    rendered here, where an error or a warning of the figure occurs again.

    Parameters
    ----------
    workers
        Number of processes; None for the cores besides this process's own, at most `MOST`.
    """
    started = _start(min(MOST, count_cores() - 1) if workers is None else workers)
    if not started:
        yield render_here
        return
    free, threads = list[Worker](), ThreadPoolExecutor(len(started))

    def warm_up(worker: Worker) -> None:
        try:
            worker.call(_warm_up)
        finally:
            free.append(worker)

    def ask(figure: Figure) -> Drawn | None:
        worker = free.pop()  # there are as many as threads that have warmed one up
        try:
            drawn: Drawn = worker.call(_draw, figure)
            return drawn
        except Exception:
            return None
        finally:
            free.append(worker)

    def render(figures: Figures) -> Rendered:
        made = [
            (words, figure, threads.submit(ask, figure))
            for words, figure in ((words, draw()) for words, draw in figures)
        ]

        def rendered() -> list[tuple[Words, Drawn]]:
            drawn = []
            for words, figure, asked in reversed(made):  # from the end, which the workers reach last
                theirs = None if asked.cancel() else asked.result()
                drawn.append((words, theirs or _both(figure)))
            return drawn[::-1]

        return rendered

    for worker in started:
        threads.submit(warm_up, worker)
    try:
        yield render
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.kill()  # no result is needed any more
        threads.shutdown()
        for worker in started:
            worker.finish()


def _start(count: int) -> list[Worker]:
    """Up to `count` processes; none where no interpreter can be started."""
    workers: list[Worker] = []
    if can_start_processes():
        with suppress(OSError):
            while len(workers) < count:
                workers.append(Worker())
    return workers


def _warm_up(_: Send) -> None:
    """Load what the first figure needs; let warnings be errors, since the caller meets them again."""
    warnings.simplefilter("error", UserWarning)
    _both(Figure())
    gc.freeze()  # what is loaded is not looked through for garbage at every figure


def _draw(_: Send, figure: Figure) -> Drawn:
    return _both(figure)


def _both(figure: Figure) -> Drawn:
    """The figure as SVG and as PNG, laid out once for both.

    Without dates or versions, so that the bytes depend on the picture alone. Printed by the canvases
    themselves: `savefig` draws everything once more before, for a layout that drawing makes as well.
    """
    svg, png = io.BytesIO(), io.BytesIO()
    with house_style():
        figure.set_dpi(DPI)
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
        figure.set_layout_engine("none")
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()
