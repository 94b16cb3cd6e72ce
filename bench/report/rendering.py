"""Figures to bytes, with other processes' help where there are many; the bytes are the same. No torch."""

from __future__ import annotations

import gc
import io
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, cast

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from .style import house_style

Drawn = tuple[bytes, bytes]
"""A figure as SVG and as PNG."""
Words = Mapping[str, str]
"""What is said of a figure; it goes through with it."""
Figures = Iterable[tuple[Words, Figure]]
Rendered = Callable[[], list[tuple[Words, Drawn]]]
"""What gives the bytes of figures, in their order, and waits for them where it must."""
Render = Callable[[Figures], Rendered]
"""What turns figures into bytes; all of them are made when it returns."""

DPI = 150
MOST = 3
"""Processes that help; one makes the figures, and does not keep more of them busy."""
_READY = b"ready to render\n"
_PROGRAM = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of its input ends it
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what anybody prints is no answer
sys.path[:] = sys.argv[1:]
from robustode.bench.rendering import serve
serve(sys.stdin.buffer, answers)
"""


def render_here(figures: Figures) -> Rendered:
    """Render in this process, at once."""
    drawn = [(words, _both(figure)) for words, figure in figures]
    return lambda: drawn


def render_nothing(figures: Figures) -> Rendered:
    """Leave the figures as they are: for who wants only what is said of them."""
    drawn = [(words, (b"", b"")) for words, _ in figures]
    return lambda: drawn


@contextmanager
def helped(helpers: int | None = None) -> Iterator[Render]:
    """Render in other processes, and in this one too once somebody waits for the bytes.

    They start at once, so that they are ready when the first figure is. What a helper fails at is rendered
    here, where an error or a warning of the figure is met again.

    Parameters
    ----------
    helpers
        How many; as many as there are cores besides this process's own, at most `MOST`, when None.
    """
    started = _start(min(MOST, _cores() - 1) if helpers is None else helpers)
    if not started:
        yield render_here
        return
    free, threads = list(started), ThreadPoolExecutor(len(started))

    def ask(figure: Figure) -> Drawn | None:
        helper = free.pop()  # there are as many as threads
        try:
            return helper.ask(figure)
        finally:
            free.append(helper)

    def render(figures: Figures) -> Rendered:
        made = [(words, figure, threads.submit(ask, figure)) for words, figure in figures]

        def rendered() -> list[tuple[Words, Drawn]]:
            drawn = []
            for words, figure, asked in reversed(made):  # from the end, where the helpers come last
                theirs = None if asked.cancel() else asked.result()
                drawn.append((words, theirs or _both(figure)))
            return drawn[::-1]

        return rendered

    try:
        yield render
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for helper in started:
            helper.process.kill()  # it has nothing to lose, and no thread waits for it any more
        threads.shutdown()
        for helper in started:
            helper.process.communicate()


def serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Render what comes in, until nothing does; the answer to what cannot be rendered is None."""
    warnings.simplefilter("error", UserWarning)  # who asked meets it again, and warns as it likes
    _both(Figure())  # what is loaded at the first figure is loaded now
    gc.freeze()  # and is not looked through for garbage at every other
    answers.write(_READY)
    answers.flush()
    with suppress(EOFError):
        while True:
            packed, drawn = pickle.load(asked), None
            with suppress(Exception):
                drawn = _both(pickle.loads(packed))
            pickle.dump(drawn, answers)
            answers.flush()


class _Helper:
    """Another process that renders. A script without a guard of its main module is not run again by it."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _PROGRAM, *(path for path in sys.path if isinstance(path, str))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._ready = False

    def ask(self, figure: Figure) -> Drawn | None:
        """What it makes of `figure`; None where it cannot, and ever after an answer that is none."""
        try:
            packed = pickle.dumps(figure)
        except Exception:
            return None
        asked, answers = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        try:
            while not self._ready:
                line = answers.readline()  # or what anybody printed before it began
                if not line:
                    return None
                self._ready = line.endswith(_READY)
            pickle.dump(packed, asked)
            asked.flush()
            drawn: Drawn | None = pickle.load(answers)
            return drawn
        except Exception:
            self.process.kill()
            return None


def _start(count: int) -> list[_Helper]:
    """Up to `count` helpers; none where no interpreter can be started."""
    helpers: list[_Helper] = []
    if sys.executable and not getattr(sys, "frozen", False):
        with suppress(OSError, ValueError):
            while len(helpers) < count:
                helpers.append(_Helper())
    return helpers


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
