"""Model transfer: stored adversarial examples of every other model replayed on each trained model.

No training and no gradients: what fooled one model is shown to another, and what holds there too joins its
worst case, re-checked as if it had been submitted. Always on the CPU, as `verify` does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..._errors import InvalidArgument, RecordError, RobustodeError, one_line
from ..._registry import unknown_name
from ...models import ModelSpec
from ..data import Data, load_data
from ..records.examples_archive import FORMER_SHA256, content_sha256
from ..records.headline import Headline
from ..records.latest import current, entry
from ..records.predictions import predictions
from ..records.record import REPLAY, REPLAYS, Cell, Record, digest
from ..records.store import Store
from ..training.find_model import ModelFinder
from ..training.load_trained import trained_model
from .replay import ModelAndSeed, Source, replay_cell
from .run_summary import RunSummary

TRANSFER_VERSION = 1
"""Raise it by hand when the algorithm changes: stored records of older versions are not reused."""

Budget = tuple[str, str, float]
"""Dataset, norm, strength."""


@dataclass(kw_only=True)
class TransferResult(RunSummary):
    """What was replayed, what was stored already, what failed, and what could not be replayed at all."""

    notes: list[str] = field(default_factory=list)


def replay_all(
    store: Store,
    *,
    names: Sequence[str] | None = None,
    specs: Sequence[ModelSpec] = (),
    data_root: Path | None = None,
    datasets: Mapping[str, Data] | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> TransferResult:
    """Replay on each trained model what is stored of all others, at the reported strengths; store records.

    A record whose sources are still the same is not made again.

    Parameters
    ----------
    names
        Models to replay on; all of the folder unless given. Sources are always all others.
    specs
        Models from files that the folder's records speak of; others are sought where they lay at their last
        run, and not replayed on where they are not there.
    datasets
        Those that are loaded already.

    Raises
    ------
    InvalidArgument
        When the folder holds no such model, or no adversarial examples of another model.
    """
    headline = Headline.read(store.folder)
    used, _ = current(store.load()[0], headline.preferred)
    known = sorted({record.cell.model for record in used})
    for name in names or ():
        if name not in known:
            raise unknown_name("model", name, known)
    done = TransferResult()
    by_model_and_seed: dict[ModelAndSeed, list[Record]] = defaultdict(list)
    for record in used:
        if record.status == "ok":
            by_model_and_seed[entry(record.cell), record.cell.training_seed].append(record)
    sources = _sources(store, used, headline, done)
    if not sources:
        raise InvalidArgument(
            f"{store.folder} holds no adversarial examples at a reported strength: run `robustode run` first"
        )
    loaded, finder = dict(datasets or {}), ModelFinder(store.folder, specs)
    found_any = False
    for model_and_seed, ours in sorted(by_model_and_seed.items(), key=lambda item: item[0]):
        if names is not None and model_and_seed[0][1] not in names:
            continue
        tasks = []
        for budget, all_of_it in sorted(sources.items()):
            others = [source for source in all_of_it if source.model_and_seed != model_and_seed]
            if budget[0] == model_and_seed[0][0] and others:
                found_any = True
                if (cell := _cell(ours, budget, others)) is not None:
                    tasks.append((cell, others))
        left = [(cell, others) for cell, others in tasks if fresh or not _stored(store, cell)]
        done.skipped += len(tasks) - len(left)
        if not left:
            continue
        training = next(r for r in ours if r.cell.kind == "training")
        data = loaded.get(model_and_seed[0][0]) or load_data(model_and_seed[0][0], data_root)
        loaded[model_and_seed[0][0]] = data
        model = _model(store, training, finder, data, done)
        if model is None:
            continue
        unperturbed = next(r for r in ours if r.cell.family == "clean")
        labels = data.test.first(unperturbed.cell.samples).labels.numpy()
        clean = predictions(unperturbed.outcomes, labels)[0]
        for cell, others in left:
            record = replay_cell(store, cell, others, model, data, clean)
            store.put(record)
            done.done += 1
            if record.status == "ok":
                say(f"{cell.label()}: {_summary(record)}")
            else:
                done.failures.append(f"{cell.label()}: {record.status}: {record.error}")
                say(f"{cell.label()}: {record.status}")
    if not found_any:
        raise InvalidArgument(
            f"{store.folder} holds no adversarial examples of another model: train and attack at least two"
        )
    return done


def _sources(
    store: Store, used: Sequence[Record], headline: Headline, done: TransferResult
) -> dict[Budget, list[Source]]:
    """The stored examples at each reported budget, those that are as their records say, in a fixed order."""
    found: dict[Budget, list[Source]] = defaultdict(list)
    for record in used:
        cell = record.cell
        reported = cell.norm is not None and headline.reported.get(cell.norm) == cell.strength
        if not reported or "adversarial" not in record.card or cell.family == REPLAY or record.status != "ok":
            continue
        facts = record.card["adversarial"]
        try:
            breaks = store.get_examples(cell)
            sha256 = content_sha256(breaks)
            if sha256 != facts.get("sha256"):
                raise RecordError("its hash is not the one in its record: edited or damaged")
        except (OSError, RecordError) as error:
            done.notes.append(f"not replayed: {store.examples_name(cell)}: {one_line(error)}")
            continue
        sha256 = str(facts.get(FORMER_SHA256, sha256))  # so that the keys of earlier replays stay
        model_and_seed = (entry(cell), cell.training_seed)
        source = Source(model_and_seed=model_and_seed, threat=cell.threat, sha256=sha256, breaks=breaks)
        found[cell.dataset, str(cell.norm), cell.strength].append(source)
    return {
        budget: sorted(them, key=lambda s: (s.model_and_seed, s.threat, s.sha256))
        for budget, them in found.items()
    }


def _cell(ours: Sequence[Record], budget: Budget, sources: Sequence[Source]) -> Cell | None:
    """The cell of one replay; None without a training and a clean accuracy."""
    clean = next((r.cell for r in ours if r.cell.family == "clean"), None)
    if clean is None or not any(r.cell.kind == "training" for r in ours):
        return None
    _, norm, strength = budget
    attacks = [r.cell for r in ours if r.cell.norm == norm and r.cell.kind == "accuracy"]
    attacks = [cell for cell in attacks if cell.strength == strength and cell.family != REPLAY]
    base = max(attacks, key=lambda cell: cell.samples, default=clean)
    return Cell(
        kind="accuracy",
        dataset=base.dataset,
        index_sha256=base.index_sha256,
        model=base.model,
        model_version=base.model_version,
        network_sha256=base.network_sha256,
        hyperparameters=base.hyperparameters,
        recipe=base.recipe,
        training_seed=base.training_seed,
        checkpoint_sha256=base.checkpoint_sha256,
        solver=base.solver,
        threat=REPLAYS[norm],
        threat_version=TRANSFER_VERSION,
        family=REPLAY,
        norm=norm,
        parameters={"sources": len(sources), "sources_sha256": digest([s.sha256 for s in sources])},
        strength=strength,
        samples=min(base.samples, clean.samples),
        batch_size=base.batch_size,
    )


def _stored(store: Store, cell: Cell) -> bool:
    record = store.get(cell)
    return record is not None and record.status == "ok"


def _model(
    store: Store, training: Record, finder: ModelFinder, data: Data, done: TransferResult
) -> nn.Module | None:
    """The trained model; None, with a note, where it cannot be had."""
    cell = training.cell
    what = f"not replayed on {cell.model} seed {cell.training_seed}"
    if data.index_sha256 != cell.index_sha256:
        done.notes.append(f"{what}: {cell.dataset} here is another one (index_sha256 differs)")
        return None
    try:
        spec = finder.find(training)
        return trained_model(store, training, spec, images=data.train.images)
    except Exception as error:  # of the model's own code too
        kind = "" if isinstance(error, RobustodeError) else f"{type(error).__name__}: "
        done.notes.append(f"{what}: {kind}{one_line(error)}")
        return None


def _summary(record: Record) -> str:
    tally = record.card["transfer"]
    tried, broke = (sum(line[name] for line in tally) for name in ("tried", "broke"))
    return f"{broke} of {tried} examples from {len(tally)} others break it, accuracy {record.accuracy:.1%}"
