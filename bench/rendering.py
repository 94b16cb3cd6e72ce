"""Figures to bytes, with other processes' help where there are many; the bytes are the same. No torch."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .style import RC

Drawn = tuple[bytes, bytes]
"""A figure as SVG and as PNG."""
Words = Mapping[str, str]
"""What is said of a figure; it goes through with it."""
Figures = Iterable[tuple[Words, Figure]]
Render = Callable[[Figures], list[tuple[Words, Drawn]]]
"""What turns figures into bytes, in their order."""

DPI = 150
MOST = 3
"""Processes that help; one makes the figures, and does not keep more of them busy."""
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from robustode.bench.rendering import _serve; _serve()"


def render_here(figures: Figures) -> list[tuple[Words, Drawn]]:
    """Render in this process."""
    return [(words, _both(figure)) for words, figure in figures]


def render_nothing(figures: Figures) -> list[tuple[Words, Drawn]]:
    """Leave the figures as they are: for who wants only what is said of them."""
    return [(words, (b"", b"")) for words, _ in figures]


@contextmanager
def helped(helpers: int | None = None) -> Iterator[Render]:
    """Render in `helpers` other processes and in this one, which renders too once all figures are made.

    They start at once, so that they are ready when the first figure is. A figure whose helper fails is
    rendered here, where an error of its own is raised.

    Parameters
    ----------
    helpers
        As many as there are cores besides this process's own, at most `MOST`, when None.
    """
    count = min(MOST, _cores() - 1) if helpers is None else helpers
    if count < 1:
        yield render_here
        return
    processes = [_start() for _ in range(count)]
    free = list(processes)

    def ask(packed: bytes) -> Drawn | None:
        process = free.pop()  # there are as many as threads
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(packed, process.stdin)
            process.stdin.flush()
            drawn: Drawn | None = pickle.load(process.stdout)
            return drawn
        finally:
            free.append(process)

    with ThreadPoolExecutor(count) as threads:

        def render(figures: Figures) -> list[tuple[Words, Drawn]]:
            made = [(words, figure, threads.submit(ask, pickle.dumps(figure))) for words, figure in figures]
            # From the end, where the helpers come last.
            return [(words, _settled(figure, asked)) for words, figure, asked in reversed(made)][::-1]

        try:
            yield render
        finally:
            threads.shutdown(cancel_futures=True)
            for process in processes:
                process.kill()  # it has nothing left to do, and nothing to lose
                process.communicate()


def _settled(figure: Figure, asked: Future[Drawn | None]) -> Drawn:
    """What a helper made of the figure, or what is made of it here where none has begun or one failed."""
    drawn = None
    if not asked.cancel():
        with suppress(OSError, EOFError, pickle.UnpicklingError):  # it is no more
            drawn = asked.result()
    return drawn or _both(figure)


def _start() -> subprocess.Popen[bytes]:
    # A script without a guard of its main module is not run again by this, as multiprocessing would.
    command = [sys.executable, "-c", _PROGRAM, *sys.path]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _serve() -> None:
    """Render what comes in, until nothing does; the answer to what cannot be rendered is None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of its input ends it
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints is not an answer
    mpl.rcParams.update(RC)
    _both(Figure())  # what is loaded at the first figure is loaded now
    while True:
        try:
            packed = pickle.load(incoming)
        except EOFError:
            return
        drawn = None
        with suppress(Exception):  # who asked meets it again, and tells it
            drawn = _both(pickle.loads(packed))
        pickle.dump(drawn, outgoing)
        outgoing.flush()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _both(figure: Figure) -> Drawn:
    """The figure as SVG and as PNG, laid out once for both.

    Without dates or versions, so that the bytes depend on the picture alone.
    """
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")
    figure.set_dpi(DPI)
    # `savefig` draws twice, the first time for a layout that there is already.
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()
