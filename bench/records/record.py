"""One unit of work (`Cell`) and its result (`Record`). How they are stored is told in `lines`. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

SUBMISSION = "submission"
"""Family of the records of adversarial examples that someone sent."""
REPLAY = "replay"
"""Family of the records of other models' stored adversarial examples."""
REPLAYS = {"linf": "transfer-linf", "l2": "transfer-l2"}
"""What they are called, by norm."""
TRANSFER = "transfer"
"""Family of attacks through other solvers of the same flow: asked of models in which a solver was seen."""
UNASKED = frozenset({SUBMISSION, REPLAY})
"""Families that lower a score and that no model need have been attacked with."""

Kind = Literal["training", "accuracy", "certificate", "dynamics", "throughput", "audit"]
Status = Literal["ok", "error", "contract", "nonfinite", "budget", "timeout"]
KINDS: tuple[str, ...] = ("training", "accuracy", "certificate", "dynamics", "throughput", "audit")
STATUSES: tuple[str, ...] = ("ok", "error", "contract", "nonfinite", "budget", "timeout")

NOT_STORED = frozenset({"norm"})
"""Outcomes that a new record has and a stored one does not."""

LATER_FIELDS = frozenset({"network_sha256"})
"""Fields of a cell that older records lack: None is left out of keys and lines."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values give equal text: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One unit of work. Two cells are the same work exactly when their keys are equal.

    Attributes
    ----------
    kind
        ``training``, ``accuracy`` (one threat at one strength), ``certificate``, ``dynamics`` (trajectories
        of the flow), ``throughput`` or ``audit`` (`threat` is then the name of the check).
    model_version, threat_version
        Raised by hand when the algorithm changes; a model from a file carries its file's hash.
    network_sha256
        The network that the model's code builds, with all that it reads (see `network_hash`); None for the
        models of this package, which read no file.
    hyperparameters, recipe
        What the model was built with, and how it was trained (``recipe["name"]`` is its label).
    threat, family, norm, protocol, parameters
        The threat; `family` is its own, ``submission`` for examples that someone sent, ``replay`` for those
        stored of other models, or ``timing``;
        `norm` is ``linf``, ``l2`` or None; `protocol` says in which space strengths are measured
        (``pixel``).
    strength
        Standard deviation, amount, radius or eps, in units of the pixel range [0, 1].
    draws
        Independent repetitions of a stochastic threat, stored side by side.
    samples
        The first `samples` test indices are evaluated.
    device
        Named only where the result depends on it (throughput); None otherwise.
    checkpoint_sha256
        The weights; None for training.
    solver
        The solvers seen in a forward pass, whatever library they are of; None where none was seen.
    """

    kind: Kind
    dataset: str
    index_sha256: str
    model: str
    model_version: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training_seed: int = 0
    checkpoint_sha256: str | None = None
    solver: str | None = None
    threat: str = "training"
    threat_version: int = 1
    family: str = "training"
    norm: str | None = None
    protocol: str = "pixel"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strength: float = 0.0
    draws: int = 1
    attack_seed: int = 0
    samples: int = 0
    batch_size: int = 0
    dtype: str = "float32"
    device: str | None = None
    network_sha256: str | None = None

    def key(self) -> str:
        """SHA-256 of the cell's canonical JSON: what makes this work this work."""
        return self._key

    def variant(self) -> str:
        """Hash of what makes the model this model: version, hyperparameters, recipe, and what it reads."""
        return self._variant

    @cached_property
    def _key(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return digest({n: v for n, v in values.items() if v is not None or n not in LATER_FIELDS})

    @cached_property
    def _variant(self) -> str:
        network = [self.network_sha256] if self.network_sha256 else []
        return digest([self.model_version, dict(self.hyperparameters), dict(self.recipe), *network])

    def label(self) -> str:
        """A short name for people: ``ch-node seed 0 · gaussian 0.1``."""
        what = f"{self.model} seed {self.training_seed}"
        if self.kind == "training":
            return f"{what} · training"
        if self.kind in ("certificate", "dynamics", "audit"):
            return f"{what} · {self.threat}"
        if self.family == "clean":
            return f"{what} · clean"
        if self.kind == "throughput":
            return f"{what} · {self.threat} at batch size {self.batch_size}"
        return f"{what} · {self.threat} {self.strength:g}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """A cell and what came of it.

    Attributes
    ----------
    status, error
        ``ok``, or what went wrong and one line about it. Only ``ok`` records carry outcomes.
    outcomes
        Arrays by name. Accuracy: ``correct`` bool (draws, samples) and ``misclassified_as`` (k,), the
        predicted classes where it is False, -1 for no answer (see `predictions`); for a bounded attack also
        ``norm`` float32 (draws, samples), the distance of each perturbed image, which is not stored
        (`NOT_STORED`).
        Certificate: ``radius`` float32 (samples,), an l2 radius in pixel units, 0 where misclassified; none
        where there is no certificate. Dynamics, float64: along ``time`` (t,): ``layer`` (t,),
        ``growth_random``, ``growth_adversarial``, ``sensitivity_initial``, ``sensitivity_trained`` and
        ``energy_drift``, each (t, states); these are stored in float32 and rounded, since they are drawn and
        nothing else (`arrays.for_drawing`).
        Throughput: ``seconds`` float64 (passes,). Training: ``train_loss``,
        ``validation_loss``, ``validation_accuracy`` float64 (epochs,). Audit: ``x`` and lines over it,
        float64 (k,).
    examples
        Of the first few samples under the first draw: ``index``, ``label``, ``prediction``
        int64 (k,) and ``image`` uint8 (k, c, h, w), for figures only. Stored where figures show them.
    measures
        Scalars by name (``samples_per_second``, ``peak_memory_bytes``, ``parameters``, ...). Of a bounded
        attack ``largest_norm``, the largest distance of a perturbed image, and ``nonfinite_gradients``, how
        often a gradient was asked for and was none. Of a timing or trajectories ``left_out``, how many
        samples have no answer and are not among those asked. Of a flow's timing also its ``operations`` and
        ``bytes``, the device's ``copy_bandwidth`` (bytes/s) and ``arithmetic_rate`` (operations/s),
        ``floor_seconds``, and ``achieved``, that over the median.
    card
        Training: what the model says of itself: summary, reference, claims, expected failures; ``files``, the
        hashes of the files that its code has read. An attack
        whose examples are stored: ``adversarial``, their count and hash (see `examples_archive`). Audit:
        ``verdict``, ``sentence``, ``unit``, ``axes``, and ``exempt``, the reason for an expected flag.
    forwards, backwards
        Samples passed through the model forwards and backwards.
    nfe
        Mean number of field evaluations per forward pass; None where no solver was seen.
    seconds
        Wall time.
    environment
        Versions, commit, device and the time of writing; not part of the cell's key.
    """

    cell: Cell
    status: Status = "ok"
    error: str | None = None
    outcomes: Mapping[str, np.ndarray] = field(default_factory=dict)
    examples: Mapping[str, np.ndarray] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    forwards: int = 0
    backwards: int = 0
    nfe: float | None = None
    seconds: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Fraction of (draw, sample) pairs classified correctly; NaN without outcomes."""
        correct = self.outcomes.get("correct")
        return float(np.mean(correct)) if correct is not None and correct.size else math.nan
