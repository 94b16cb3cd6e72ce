"""Other processes: their answers, their deaths, their end with this one, whatever they print."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import pytest
from robustode.bench.runtime import machine, processes
from robustode.bench.runtime.processes import (
    Died,
    Message,
    ProcessDied,
    Raised,
    Returned,
    Worker,
    portable,
    run_jobs,
)


class Odd(Exception):
    """Cannot be made from the text that pickle keeps."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def work(send, job):
    """Do what `job` says; print at every turn."""
    print("noise", flush=True)
    os.write(1, b"more noise\n")
    send("began", job)
    if job == "end":
        os._exit(3)
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "raise":
        raise OSError(28, "full")
    if job == "odd":
        raise Odd(1, 2)
    if job == "unsendable":
        return threading.Lock()
    if job == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if job == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
    return job.upper()


def only_in(process):
    if os.getpid() != process:
        raise ImportError("not here")


class OnlyThere:
    """Can be pickled, and read back in the same process only."""

    def __reduce__(self):
        return only_in, (os.getpid(),)


def unreadable(send, how):
    if how == "message":
        send("began", OnlyThere())
    return OnlyThere()


def surroundings(send):
    return os.getcwd(), os.environ.get("A_VARIABLE"), os.getpid()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.kill()
    worker.finish()


def test_one_process_runs_one_function_after_another(worker):
    assert worker.call(work, "a") == "A"
    worker.start(work, "b")
    assert [worker.receive(), worker.receive()] == [Message("began", "b"), Returned("B")]
    with pytest.raises(OSError, match="full"):
        worker.call(work, "raise")
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        worker.call(work, "odd")
    with pytest.raises((TypeError, RuntimeError), match="lock"):
        worker.call(work, "unsendable")
    with pytest.raises(Exception, match="pickle"):
        worker.call(work, lambda: None)
    assert worker.call(work, "interrupt") == "INTERRUPT", "Ctrl-C is the business of who asked"
    with pytest.raises(ProcessDied, match="ended with exit status 3"):
        worker.call(work, "end")
    with pytest.raises(ProcessDied, match="ended with exit status 3"):
        worker.call(work, "a")


@pytest.mark.parametrize("how", ["message", "value"])
def test_an_answer_that_cannot_be_read_is_named_at_once(worker, how):
    began = time.monotonic()
    worker.start(unreadable, how)
    answer = worker.receive()
    assert isinstance(answer, Died)
    assert "ImportError: not here" in answer.reason
    assert time.monotonic() - began < processes.PATIENCE
    with pytest.raises(ProcessDied):
        worker.call(work, "a")


def test_folder_and_variables_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ("one", "two"):  # a server that forks processes was started with older ones
        monkeypatch.setenv("A_VARIABLE", value)
        worker = Worker(["json"])
        folder, variable, pid = worker.call(surroundings)
        worker.finish()
        assert (folder, variable) == (str(tmp_path), value)
        assert pid != os.getpid()


def test_each_job_has_its_answers_and_more_can_be_added():
    jobs, answers = deque(["a", "end", "killed", "raise"]), {}
    for job, answer in run_jobs(work, jobs, processes=3):
        answers.setdefault(job, []).append(answer)
        if job == "end" and isinstance(answer, Died):
            jobs.append("added")
    began = {job: found.pop(0) for job, found in answers.items()}
    assert began == {job: Message("began", job) for job in answers}
    raised = answers.pop("raise")
    assert answers == {
        "a": [Returned("A")],
        "added": [Returned("ADDED")],
        "end": [Died("ended with exit status 3")],
        "killed": [Died("was killed by signal 9")],
    }
    assert [type(one) for one in raised] == [Raised]


def test_a_caller_that_stops_leaves_no_process_behind():
    before = set(multiprocessing.active_children())
    jobs = run_jobs(work, deque(["a", "b"]), processes=2)
    next(jobs)
    assert set(multiprocessing.active_children()) - before
    jobs.close()
    assert set(multiprocessing.active_children()) <= before


def test_a_thread_does_not_hold_up_a_process_that_has_answered(monkeypatch):
    monkeypatch.setattr("robustode.bench.runtime.processes.PATIENCE", 0.1)
    assert [answer for _, answer in run_jobs(work, deque(["thread"]), processes=1)][-1] == Returned("THREAD")


@pytest.mark.parametrize("interpreter", ["/nowhere/python"])
def test_an_interpreter_that_is_not_there_is_a_death(interpreter, monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(interpreter))
    worker = Worker()
    with pytest.raises(ProcessDied, match="exit status"):
        worker.call(work, "a")
    worker.finish()


def test_a_script_need_not_guard_its_main_module(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('main')\n"
        "import os\n"
        "from collections import deque\n"
        "from robustode.bench.runtime.processes import run_jobs\n"
        "from robustode.bench.runtime.machine import count_cores\n"
        "def main(send, job): pass\n"
        "import posixpath\n"
        "print([answer for _, answer in run_jobs(posixpath.join, deque(['a']), processes=1)])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "main"
    assert len(lines) == 2
    assert lines[1].startswith("[Raised(")


def test_what_cannot_be_sent_is_sent_in_words():
    assert str(portable(Odd(1, 2))) == "Odd: 1 and 2"
    assert isinstance(portable(OSError(28, "full")), OSError)


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    assert 1 <= machine.count_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert machine.count_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.count_cores() == 1
    assert machine.free_memory() > 0
