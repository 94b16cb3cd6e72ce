"""A time limit stops what sleeps, spins or swallows its first exception, and leaves no alarm behind."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from robustode._errors import TimeLimitExceeded
from robustode.bench.runtime.time_limit import Limit, time_limit

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")


def spin() -> None:
    while True:
        pass


def stubborn() -> None:
    try:
        time.sleep(60)
    except TimeLimitExceeded:
        time.sleep(60)


@pytest.mark.parametrize("work", [lambda: time.sleep(60), spin, stubborn], ids=["sleep", "spin", "swallow"])
def test_it_stops(work):
    with (
        pytest.raises(TimeLimitExceeded, match=r"the work took longer than its limit of 0\.05 s"),
        time_limit(0.05, "the work"),
    ):
        work()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert TimeLimitExceeded.status == "timeout"


def test_what_is_fast_enough_is_left_alone():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(60, "nothing"):
        assert signal.getsignal(signal.SIGALRM) is not before
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_error_passes_and_the_alarm_is_cleared():
    with pytest.raises(KeyError), time_limit(60, "nothing"):
        raise KeyError
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_block_within_another_leaves_the_outer_limit_and_may_not_outlast_it():
    def inner_then_sleep() -> None:
        with time_limit(60, "inner"):
            pass
        time.sleep(60)

    def sleep_at_once_after(seconds: float, limit: Limit) -> None:
        limit.set(seconds)
        time.sleep(60)

    with pytest.raises(TimeLimitExceeded, match="outer took longer than"), time_limit(0.1, "outer"):
        inner_then_sleep()
    with pytest.raises(TimeLimitExceeded), time_limit(60, "the work") as limit:
        sleep_at_once_after(0.05, limit)
    with (
        pytest.raises(TimeLimitExceeded, match="outer took longer"),
        time_limit(0.05, "outer"),
        time_limit(60, "inner"),
    ):
        time.sleep(60)
    with time_limit(60, "outer"):
        with pytest.raises(TimeLimitExceeded, match="inner took longer"), time_limit(0.05, "inner"):
            time.sleep(60)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_limit_can_be_changed_while_the_block_runs():
    with time_limit(0.05, "the work") as limit:
        limit.set(60)
        time.sleep(0.1)
        limit.set(7300)
        assert str(limit.error()) == "the work took longer than its limit of 2.03 h"


def test_in_another_thread_there_is_no_limit():
    done = []

    def work() -> None:
        with time_limit(0.01, "the work"):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
