"""Re-check a results folder: records, checkpoints, adversarial examples, tables. No training, no attack.

What a folder says is compared with what follows from its files: a number is believed when the records make
it, a record when its weights give it again, a break when the stored image breaks the stored model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..._errors import InvalidArgument, RobustodeError, one_line
from ..._registry import unknown_name
from ...models import ModelSpec
from ..data import Data, load_data
from ..records.headline import headline_of
from ..records.latest import Entry, current, entry
from ..records.record import Record
from ..records.store import Store
from ..training.find_model import ModelFinder
from ..training.load_trained import trained_model
from .recompute import Recheck, check_checkpoint
from .report_consistency import Finding, check_listed, check_orphans, check_tables


@dataclass(kw_only=True)
class Verification:
    """What was checked, and what did not agree.

    Attributes
    ----------
    findings
        Disagreements and notes, in the order in which they were found.
    records, models, predicted
        Records that count, trained models whose forward pass was run, adversarial examples predicted again.
    unrun
        Models and seeds whose forward pass was not run, in words.
    """

    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    models: int = 0
    predicted: int = 0
    unrun: list[str] = field(default_factory=list)

    @property
    def disagreements(self) -> list[Finding]:
        """The findings that are not notes."""
        return [finding for finding in self.findings if not finding.note]

    @property
    def notes(self) -> list[Finding]:
        """What could not be checked."""
        return [finding for finding in self.findings if finding.note]


def verify(
    folder: Path,
    data_root: Path | None = None,
    models: Sequence[ModelSpec] = (),
    *,
    only: Collection[str] | None = None,
    search: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Check everything that a results folder claims against its own files, on the CPU.

    Parameters
    ----------
    data_root
        Where datasets lie.
    models
        Models from files that the folder's records speak of; others are sought where they lay at their last
        run, and not run where they are not there.
    only
        Names of the models whose weights and examples are checked; all unless given. Records and tables
        are checked in any case.
    search
        Import the files of models from where the folder's plan says that they lie.
    say
        Called with what is being checked.

    Raises
    ------
    InvalidArgument
        When the folder holds no record at all, or none of a model that `only` names.
    DataUnavailable
        When a dataset that the records speak of is not there.
    """
    store = Store(folder)
    records, problems = store.load()
    if not records and not problems:
        raise InvalidArgument(f"no records in {folder}: run `robustode run` first, or pass --out")
    known = {r.cell.model for r in records} | {problem.path.parent.name for problem in problems}
    for name in sorted(set(only or ()) - known):
        raise unknown_name(f"model of {folder}", name, sorted(known))
    done = Verification(records=len(records))
    say(f"{len(records)} records in {folder}: hashes, plan, tables")
    done.findings += [*check_listed(store, records, problems), *check_orphans(store, records)]
    if records:
        done.findings += check_tables(store)
    headline = headline_of(folder, records)
    used, _ = current(records, headline.preferred)
    finder = ModelFinder(store.folder, models, search=search)
    datasets: dict[str, Data] = {}
    units: dict[tuple[Entry, int], list[Record]] = defaultdict(list)
    for record in used:
        units[entry(record.cell), record.cell.training_seed].append(record)
    for (row, seed), ours in sorted(units.items()):
        if only is not None and row[1] not in only:
            continue
        say(f"{row[1]} seed {seed}: checkpoint")
        wrong = list(check_checkpoint(store, ours))
        done.findings += wrong
        data = datasets.get(row[0]) or load_data(row[0], data_root)
        datasets[row[0]] = data
        if other := next((r for r in ours if r.cell.index_sha256 != data.index_sha256), None):
            what = f"it speaks of other samples than {row[0]} here (index_sha256 differs): not re-checked"
            done.findings.append(Finding(file=_file(store, other), what=what))
            continue
        model = None if wrong else _model(store, ours, finder, data, done)
        recheck = Recheck(store, ours, data, dict(headline.reported), model, say)
        done.findings += recheck.findings()
        done.models += model is not None
        if model is None:
            done.unrun.append(f"{row[1]} seed {seed}")
        done.predicted += recheck.predicted
    if done.unrun and not done.models and not done.disagreements:
        what = "no trained model could be run again, so no example was: see the notes"
        done.findings.append(Finding(file="checkpoints", what=what))
    return done


def _model(
    store: Store,
    records: Sequence[Record],
    finder: ModelFinder,
    data: Data,
    done: Verification,
) -> nn.Module | None:
    """The trained model of `records`; None, with a finding, where it cannot be run."""
    training = next((r for r in records if r.cell.kind == "training" and r.status == "ok"), None)
    if training is None:
        return None
    file = _file(store, training)
    try:
        spec = finder.find(training)
    except RobustodeError as error:
        done.findings.append(Finding(file=file, what=f"not run again: {error}", note=True))
        return None
    try:
        return trained_model(store, training, spec, images=data.train.images)
    except Exception as error:  # of the model's own code too
        what = f"the model cannot be built: {one_line(error)}"
        if not isinstance(error, RobustodeError):
            what = f"the model cannot be built: {type(error).__name__}: {one_line(error)}"
        done.findings.append(Finding(file=file, what=what))
        return None


def _file(store: Store, record: Record) -> str:
    return store.name(record.cell)
