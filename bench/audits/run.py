"""Audit the trained models of a results folder: one record per audit, model and training seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..._errors import InvalidArgument, ModelFailure
from ..._registry import unknown_name
from ...models import ModelSpec, set_ode_backend
from ..config.training_seeds import chosen_seeds
from ..data import load_data
from ..evaluation.accuracy import failed
from ..plugins.model_file import load_registrations, named_models
from ..records.headline import headline_of
from ..records.record import Cell, Record
from ..records.store import Store
from ..runtime.announcements import announce, telling
from ..runtime.device import CPU, environment
from ..runtime.machine import count_cores
from ..runtime.processes import Died, Message, Raised, Returned, Send, run_jobs
from ..training.find_model import ModelFinder
from .audit_model import (
    LIMIT,
    Audited,
    Task,
    audit_trained_model,
    in_words,
    records_by_training,
    training_of,
)
from .library import check_names, names_of

SAMPLES = 128


def audit_folder(
    folder: Path,
    data_root: Path | None = None,
    *,
    models: Sequence[str] = (),
    checks: Sequence[str] = (),
    samples: int = SAMPLES,
    seeds: int | Sequence[int] | None = None,
    fresh: bool = False,
    jobs: int | None = None,
    time_limit: float = LIMIT,
    load: Sequence[Path] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Audited:
    """Run the model audits on every trained model of a results folder, on the CPU.

    An audit whose record is stored is not run again. Audits of records are run by every report.

    Parameters
    ----------
    data_root
        Folder of the datasets.
    models
        Names of the models to audit, all of them by default; ``FILE.py:factory`` says where a model is that
        does not lie where it was last run.
    checks
        Names of the audits; by default those of the folder's preset, or all.
    samples
        Most test images that an audit uses.
    seeds
        Audit training seeds 0 .. seeds - 1, or those named; all of them by default.
    fresh
        Run every audit again.
    jobs
        Models audited at once, each in a process of its own: what ends it costs its model one audit. By
        default one per core; 1 audits in this process.
    time_limit
        Seconds for one audit of one model, and for loading it.
    load
        Files that have registered models, threats or datasets here, for the other processes.
    say
        Called with each result, one line each.

    Raises
    ------
    InvalidArgument
        When the folder holds no trained model, or a name is unknown.
    """
    check_names(checks)
    if samples < 2:
        raise InvalidArgument(f"--samples must be at least 2, not {samples}")
    wanted_seeds = chosen_seeds(seeds)
    store = Store(folder)
    trained = records_by_training(store)
    names = tuple(checks or headline_of(store.folder, store.load()[0]).audits or names_of("model"))
    wanted, specs = named_models(models)
    known = sorted({row[1] for row, _ in trained})
    for name in sorted(wanted):
        if name not in known:
            raise unknown_name(f"model of {folder}", name, known)
    chosen = [
        (row, seed)
        for row, seed in trained
        if (not wanted or row[1] in wanted) and (wanted_seeds is None or seed in wanted_seeds)
    ]
    for dataset in sorted({row[0] for row, _ in chosen}):
        load_data(dataset, data_root)
    tasks = [
        Task(
            folder=Path(folder),
            data_root=data_root,
            row=row,
            seed=seed,
            files=_files_of(trained[row, seed], specs),
            checks=names,
            samples=samples,
            fresh=fresh,
            time_limit=time_limit,
            load=tuple(load),
        )
        for row, seed in chosen
    ]
    done = Audited()
    with store.lock():
        if jobs == 1:
            finder = ModelFinder(store.folder, specs.values())
            for task in tasks:
                done.add(audit_trained_model(task, say, finder))
        else:
            _audit_in_processes(tasks, jobs or count_cores(), say, done)
    return done


def _files_of(records: Sequence[Record], specs: Mapping[str, ModelSpec]) -> tuple[str, ...]:
    """Which references of `specs` may be the model of `records`: by its name, or its architecture's."""
    training = training_of(records)
    names = (training.cell.model, training.card.get("architecture"))
    return tuple(reference for reference, spec in specs.items() if spec.name in names)


def _audit_in_processes(
    tasks: Sequence[Task], processes: int, say: Callable[[str], None], done: Audited
) -> None:
    """Add to `done` what was done of `tasks`.

    An audit in which the process of its model dies has failed, and another process goes on after it.
    """
    queue, begun = deque(tasks), dict[Task, list[Cell]]()
    for task, answer in run_jobs(_audit_task, queue, processes=processes, preload=[__name__]):
        match answer:
            case Message("announcement", changed):
                announce(*changed)
            case Message("audit", cell):
                begun.setdefault(task, []).append(cell)
            case Message(_, line):
                say(line)
            case Returned(audited):
                done.add(audited)
            case Raised(OSError() as error):
                raise error
            case Raised(error):
                done.failures.append(f"{task.label}: not audited further: {in_words(error)}")
            case Died(reason):
                rest = _after_death(task, begun.get(task, []), reason, done)
                if rest is not None:
                    queue.appendleft(rest)


def _after_death(task: Task, begun: Sequence[Cell], reason: str, done: Audited) -> Task | None:
    """Store a failure for the last of the audits that a process had begun, when it died.

    Returns the audits after it, None without any.
    """
    error = ModelFailure(f"its process {reason}")
    if not begun:
        done.failures.append(f"{task.label}: not audited: {error}")
        return None
    store = Store(task.folder)
    store.put(failed(begun[-1], error, seconds=0.0, environment=environment(CPU)))
    for record in filter(None, map(store.get, begun)):
        done.done += 1
        if record.status != "ok":
            done.failures.append(f"{record.cell.label()}: {record.status}: {record.error}")
    names = [audit.name for audit in task.audits()]
    left = names[names.index(begun[-1].threat) + 1 :]
    return replace(task, checks=tuple(left)) if left else None


def _audit_task(send: Send, task: Task) -> Audited:
    set_ode_backend(task.ode_backend)
    load_registrations(task.load)
    torch.set_num_threads(1)
    with telling(lambda *changed: send("announcement", changed)):
        return audit_trained_model(task, partial(send, "line"), on_start=partial(send, "audit"))
