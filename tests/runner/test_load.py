"""Whether the machine was a timing's own."""

from __future__ import annotations

import pytest
from robustode.bench.throughput import machine_load as load


@pytest.mark.parametrize(
    ("line", "own", "others"),
    [
        ("cpu 100 0 100 800 0 0 0 0 0 0", 2.0, 0.0),
        ("cpu 100 0 100 800 0 0 0 0 0 0", 0.5, 0.15),
        ("cpu 100 0 100 500 0 0 0 300 0 0", 2.0, 0.3),
        ("cpu 0 0 0 900 100 0 0 0 0 0", 0.0, 0.0),
        ("cpu 100 0 100 800 0 0 0 0 0 0", 9.0, 0.0),
    ],
    ids=["ours", "half theirs", "stolen", "waiting for a disk", "more than there is"],
)
def test_what_others_took_is_the_busy_time_that_is_not_ours(tmp_path, monkeypatch, line, own, others):
    """Of ten processor seconds, in ticks of a hundredth."""
    monkeypatch.setattr(load.os, "sysconf", lambda _: 100)
    stat = tmp_path / "stat"
    monkeypatch.setattr(load, "_STAT", stat)
    stat.write_text("cpu 0 0 0 0 0 0 0 0 0 0\n")
    times = type("Times", (), {"user": 1.0, "system": 0.0})
    monkeypatch.setattr(load.os, "times", lambda: times)
    monitor = load.LoadMonitor()
    stat.write_text(f"{line}\ncpu0 1 2 3\n")
    times.user += own
    assert monitor.others_share() == pytest.approx(others)


def test_where_nothing_is_known_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_STAT", tmp_path / "absent")
    assert load.LoadMonitor().others_share() is None


def test_here_it_is_a_share():
    others = load.LoadMonitor().others_share()
    assert others is None or 0 <= others <= 1
