"""A time limit stops what sleeps, spins or swallows its first exception, and leaves no alarm behind."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from robustode._errors import TimeLimitExceeded
from robustode.bench.runtime.time_limit import time_limit

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
