"""Audit the trained models of a results folder: one record per audit, model and training seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from ..._errors import InvalidArgument
from ..._registry import unknown_name
from ...models import ModelSpec, set_ode_backend
from ..data import load_data
from ..plugins.model_file import named_models
from ..records.headline import headline_of
from ..records.record import Record
from ..records.store import Store
from ..runtime.announcements import announce, telling
from ..runtime.machine import count_cores
from ..runtime.processes import Died, Message, Raised, Returned, Send, run_jobs
from .audit_model import (
    Audited,
    Task,
    audit_trained_model,
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
    seeds: int | None = None,
    fresh: bool = False,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Audited:
    """Run the model audits on every trained model of a results folder, on the CPU.

    An audit whose record is stored is not run again. Audits of records are run by every report.

    Parameters
    ----------
    data_root
        Folder of the datasets.
    models
        Names of the models to audit, all of them by default; ``FILE.py:factory`` says where a model is.
    checks
        Names of the audits; by default those of the folder's preset, or all.
    samples
        Most test images that an audit uses.
    seeds
        Audit training seeds 0 .. seeds - 1; all of them by default.
    fresh
        Run every audit again.
    jobs
        Models audited at once, each in a process of its own; by default one per core.
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
    if seeds is not None and seeds < 1:
        raise InvalidArgument(f"--seeds must be at least 1, not {seeds}")
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
        if (not wanted or row[1] in wanted) and (seeds is None or seed < seeds)
    ]
    for dataset in sorted({row[0] for row, _ in chosen}):
        load_data(dataset, data_root)
    tasks = [
        Task(Path(folder), data_root, *where, _files_of(trained[where], specs), names, samples, fresh)
        for where in chosen
    ]
    workers = min(jobs or count_cores(), len(tasks))
    with store.lock():
        found = (
            _audit_in_processes(tasks, workers, say)
            if workers > 1
            else [audit_trained_model(task, say, specs) for task in tasks]
        )
    done = Audited()
    for one in found:
        done.add(one)
    return done


def _files_of(records: Sequence[Record], specs: Mapping[str, ModelSpec]) -> tuple[str, ...]:
    """Which references of `specs` may be the model of `records`: by its name, or its architecture's."""
    training = training_of(records)
    names = (training.cell.model, training.card.get("architecture"))
    return tuple(reference for reference, spec in specs.items() if spec.name in names)


def _audit_in_processes(tasks: Sequence[Task], processes: int, say: Callable[[str], None]) -> list[Audited]:
    """What `audit_trained_model` returns for each of `tasks`; a task whose process dies is a failure."""
    found: dict[Task, Audited] = {}
    for task, answer in run_jobs(_audit_task, deque(tasks), processes=processes, preload=[__name__]):
        match answer:
            case Message("announcement", changed):
                announce(*changed)
            case Message(_, line):
                say(line)
            case Returned(audited):
                found[task] = audited
            case Raised(error):
                raise error
            case Died(reason):
                line = f"{task.row[1]} seed {task.seed} ({task.row[2]}): not audited: its process {reason}"
                found[task] = Audited(failures=[line])
    return [found[task] for task in tasks]


def _audit_task(send: Send, task: Task) -> Audited:
    set_ode_backend(task.ode_backend)
    torch.set_num_threads(1)
    with telling(lambda *changed: send("announcement", changed)):
        return audit_trained_model(task, partial(send, "line"))
