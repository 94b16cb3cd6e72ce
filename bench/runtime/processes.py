"""Functions run in other processes: started, given work, listened to, and ended with this process. No torch.

A function that runs in another process takes `send` as its first argument, and what it returns or raises is
the answer. It runs in the working directory and with the environment variables of the process that asked.
Answers travel through a pipe of their own, so nothing that foreign code prints can damage them.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker, spawn
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, TypeVar, cast

PATIENCE = 10.0
"""Seconds in which a process must end once it has answered; then it is terminated."""

Job = TypeVar("Job")
Send = Callable[[str, Any], None]
"""Sends a message, a kind and its content, to the process that asked."""


@dataclass(frozen=True)
class Message:
    """What a function sent while it ran."""

    kind: str
    content: Any


@dataclass(frozen=True)
class Returned:
    """The value that a function returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The exception that a function raised; a `RuntimeError` with its text where it cannot be pickled."""

    error: Exception


@dataclass(frozen=True)
class Died:
    """The process ended before it answered, or was ended as its answer could not be read.

    `reason` says so in words that follow "its process": its exit status, its signal, or the error.
    """

    reason: str


Answer = Message | Returned | Raised | Died


class ProcessDied(Exception):
    """A process ended before it answered."""


def can_start_processes() -> bool:
    """Whether there is an interpreter that another process can be started with."""
    return bool(spawn.get_executable()) and not getattr(sys, "frozen", False)


class Worker:
    """Another process, which runs one function after another. It ignores Ctrl-C and ends with this process.

    Parameters
    ----------
    preload
        Names of modules that are loaded once, in a server from which workers are forked where the system has
        such a server. Without names, and elsewhere, a new interpreter is started.

    Attributes
    ----------
    connection
        Becomes readable when there is an answer; for `multiprocessing.connection.wait`.

    Raises
    ------
    OSError
        When the process cannot be started.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        forked = preload and "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if forked else "spawn")
        if forked:
            context.set_forkserver_preload(list(preload))
        ours, theirs = context.Pipe()
        self.connection: Connection = ours
        self.process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, os.getcwd(), dict(os.environ))
        )
        with _without_main_module(), _interrupts_held_back():
            self.process.start()
        theirs.close()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have ``function(send, *arguments)`` run there; its answers are read by `receive`.

        Raises
        ------
        Exception
            Of pickle, where the arguments cannot be sent; nothing was asked then.
        """
        packed = pickle.dumps((function, arguments))
        with suppress(OSError):  # of a process that has ended, which `receive` reports
            self.connection.send_bytes(packed)

    def receive(self) -> Answer:
        """Wait for the next message, or for what the function returned or raised."""
        try:
            packed = self.connection.recv_bytes()
        except (EOFError, OSError) as error:  # the end of the pipe, or no message at all
            self.process.join(PATIENCE)
            code = self.process.exitcode
            self._terminate()
            return Died(f"stopped answering: {_in_words(error)}" if code is None else _exit_in_words(code))
        try:
            answer = pickle.loads(packed)
            if not isinstance(answer, Answer):
                raise TypeError(f"{type(answer).__name__} is no answer")
        except Exception as error:  # such as a class of a module that is loaded in that process only
            self._terminate()
            return Died(f"sent an answer that cannot be read: {_in_words(error)}")
        return answer

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``function(send, *arguments)`` there and return its value; messages are ignored.

        Raises
        ------
        ProcessDied
            When the process ended first.
        Exception
            Whatever the function raised, and pickle's where the arguments cannot be sent.
        """
        self.start(function, *arguments)
        while isinstance(answer := self.receive(), Message):
            pass
        if isinstance(answer, Raised):
            raise answer.error
        if isinstance(answer, Died):
            raise ProcessDied(answer.reason)
        return answer.value

    def finish(self) -> None:
        """End a process that has answered: it may write out its buffers, but threads do not hold it up."""
        self.connection.close()
        self.process.join(PATIENCE)
        self._terminate()

    def kill(self) -> None:
        """End the process at once; `finish` still has to be called."""
        self.process.kill()

    def _terminate(self) -> None:
        self.process.terminate()
        self.process.join(PATIENCE)
        self.process.kill()  # one that does not end when it is asked to
        self.process.join()


def run_jobs(
    function: Callable[[Send, Job], Any], jobs: deque[Job], *, processes: int, preload: Sequence[str] = ()
) -> Iterator[tuple[Job, Answer]]:
    """Run ``function(send, job)`` for each of `jobs`, each in a process of its own, `processes` at once.

    Yields each job with each of its answers, in the order in which they arrive: any number of `Message`, then
    one `Returned`, `Raised` or `Died`. Jobs that the caller adds to `jobs` meanwhile are run too. When the
    caller stops, the processes are terminated.
    """
    running: dict[Connection, tuple[Worker, Job]] = {}
    try:
        while jobs or running:
            while jobs and len(running) < processes:
                job = jobs.popleft()
                worker = Worker(preload)
                running[worker.connection] = worker, job
                worker.start(function, job)
            for ready in wait(list(running)):
                worker, job = running[cast(Connection, ready)]
                answer = worker.receive()
                if not isinstance(answer, Message):
                    worker.finish()
                    del running[worker.connection]
                yield job, answer
    finally:
        for worker, _ in running.values():
            worker.process.terminate()
        for worker, _ in running.values():
            worker.finish()


def _serve(connection: Connection, folder: str, variables: dict[str, str]) -> None:
    """Run what is asked for until the other end of `connection` is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)

    def send(kind: str, content: Any) -> None:
        try:
            connection.send(Message(kind, content))
        except BrokenPipeError:
            os._exit(1)  # there is nobody left to work for

    with suppress(EOFError):
        while True:
            packed = connection.recv_bytes()
            try:
                function, arguments = pickle.loads(packed)
                answer = pickle.dumps(Returned(function(send, *arguments)))
            except Exception as error:
                answer = pickle.dumps(Raised(portable(error)))
            connection.send_bytes(answer)


def portable(error: Exception) -> Exception:
    """Return `error`, or a `RuntimeError` with its type and text where it cannot be pickled and read back."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(_in_words(error))
    return error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _exit_in_words(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"


def _end_with_parent() -> None:
    """End this process when its parent has: a killed run must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the main module, which multiprocessing runs again in each process: a script need not guard it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Block SIGINT, so that a process that is started never sees one: its mask is inherited."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it lifts the block when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
