"""What a person sees: plain lines in a pipe, a bar on a terminal, spans of time in words."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from robustode.bench.runtime import progress
from robustode.bench.runtime.progress import Quiet, Terminal, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
def test_a_duration_is_within_a_minute_of_what_it_says(seconds):
    found = re.fullmatch(r"(?:(\d+) h )?(?:(\d+) min ?)?(?:(\d+) s)?", duration(seconds))
    assert found
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    assert abs(3600 * hours + 60 * minutes + rest - seconds) <= 60
    assert minutes < 60
    assert rest < 60


class Time:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=time.monotonic))
    return time


def test_a_pipe_gets_one_plain_line_for_each_thing_said(clock, capsys):
    with Terminal(Console(file=io.StringIO())) as reporter:
        reporter.start(100.0)
        reporter.activity("something")
        reporter.line("first [bold]")
        reporter.advance(50.0)
        clock.now = 50.0
        reporter.line("second")
        reporter.advance(70.0)
        reporter.line("last")
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "[  0%, 1 min 40 s left] first [bold]"
    assert lines[1] == "[ 50%, 50 s left] second"
    assert lines[2] == "[100%, 0 s left] last"
    assert "\x1b" not in out
    assert "\r" not in out


def test_a_pipe_gets_a_line_now_and_then_while_nothing_ends(clock, capsys):
    with Terminal(Console(file=io.StringIO())) as reporter:
        reporter.start(1000.0)
        reporter.activity("node seed 0 · pgd-linf 0.1")
        for clock.now in range(0, 200, 10):
            reporter.advance(10.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith("left] node seed 0 · pgd-linf 0.1") for line in lines)


@pytest.mark.parametrize("verbose", [False, True])
def test_details_are_for_who_asks(verbose, capsys):
    with Terminal(Console(file=io.StringIO()), verbose=verbose) as reporter:
        reporter.detail("one cell")
        reporter.line("one model")
    shown = [line.split("] ")[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == (["one cell"] if verbose else []) + ["one model"]


@pytest.mark.parametrize(
    ("environ", "bar", "colours"),
    [
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm"}, True, True),
    ],
)
def test_dumb_terminals_and_no_color_are_respected(environ, bar, colours, capsys):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, _environ=environ)
    with Terminal(console) as reporter:
        reporter.start(10.0)
        reporter.advance(4.0)
        reporter.line("a line")
    text, plain = file.getvalue(), capsys.readouterr().out
    assert ("\x1b" in text) == bar
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) == colours
    assert bool(plain) != bar
    assert "\r" not in plain


def test_the_time_left_follows_the_pace(clock, capsys):
    with Terminal(Console(file=io.StringIO())) as reporter:
        reporter.start(1000.0)
        reporter.advance(500.0)
        clock.now = 5000.0  # ten times slower than thought
        reporter.line("slow")
    found = re.search(r"(\d+) h (\d+) min left", capsys.readouterr().out)
    assert found
    left = 3600 * int(found[1]) + 60 * int(found[2])
    assert 4000 <= left <= 5000


def test_nothing_to_do_is_all_done(clock, capsys):
    with Terminal(Console(file=io.StringIO())) as reporter:
        reporter.start(0.0)
        reporter.line("done")
    assert capsys.readouterr().out == "[100%, 0 s left] done\n"


def test_a_terminal_gets_a_bar_and_the_lines_stay():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with Terminal(console) as reporter:
        reporter.start(10.0)
        reporter.activity("node [red]seed 0[/red]")
        reporter.advance(4.0)
        reporter.line("a line [that] stays")
        reporter.advance(60.0)
    text = file.getvalue()
    assert "a line [that] stays" in text
    assert "node [red]seed 0[/red]" in text
    assert "100%" in text


def test_a_bar_is_closed_by_an_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)

    def stop() -> None:
        with Terminal(console) as reporter:
            reporter.start(10.0)
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    with Terminal(console):  # rich refuses a second live bar while one is open
        pass


def test_quiet_says_nothing(capsys):
    reporter = Quiet()
    reporter.start(1.0)
    reporter.activity("x")
    reporter.advance(1.0)
    reporter.line("x")
    assert capsys.readouterr() == ("", "")
