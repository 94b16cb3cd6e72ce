"""What a check that asks the model is given: the model, samples, and shared answers to costly questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...attacks import THREATS, Threat
from ...attacks.core.seeds import Purpose, stream_generator, stream_seeds
from ...attacks.core.types import Norm
from ...models import ModelSpec
from ..evaluation.accuracy import frozen
from ..evaluation.consistency import asked_with_gradients
from ..records.record import Cell
from ..runtime.checked_model import CheckedModel
from ..runtime.foreign_code import attacking
from ..solvers.changed_model import solved_as_forward
from ..solvers.observe import observe
from ..solvers.solver_call import SolverCall
from ..solvers.without_solver import known_without_solver
from ..training.provenance import solver_names
from .measures import normalised
from .registry import AuditResult, not_applicable, not_asked
from .stored_records import StoredRecords

T = TypeVar("T")
DEFAULT_EPS = {"linf": 0.1, "l2": 0.5}
"""Where the leaderboard reports no strength."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """One model in eval mode and what is known of it.

    Attributes
    ----------
    model
        In eval mode, on `device`.
    images, labels
        Test samples (N, C, H, W) and (N,), on `device`.
    num_classes, dataset
        Of the dataset.
    spec
        What the model says of itself.
    stored
        Stored records of this model and training seed.
    norm, eps
        The budget at which the model is attacked: what the leaderboard ranks by, if that is a norm.
    seed
        Of every random choice.
    long_steps
        PGD steps of the long run that `step-counts` compares with 20.
    apgd_steps, targets
        Of APGD-CE and APGD-T.
    queries, spsa_steps
        Of Square and SPSA.
    batch_size
        Images that go through the model at once.
    strict
        Compare logits as `robustode check` does of an untrained model: passes must agree to the last bit, the
        scale of the logits counts, and no difference is excused by ill-conditioned weights.
    memo
        Answers that several audits share.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    num_classes: int
    dataset: str
    spec: ModelSpec
    stored: StoredRecords = field(default_factory=StoredRecords)
    norm: Norm = "linf"
    eps: float = 0.1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    long_steps: int = 1000
    apgd_steps: int = 100
    targets: int = 9
    queries: int = 1000
    spsa_steps: int = 10
    batch_size: int = 128
    strict: bool = False
    memo: dict[Any, Any] = field(default_factory=dict, compare=False)

    def first(self, count: int) -> Context:
        """The same, with the first `count` samples and nothing remembered."""
        return replace(self, images=self.images[:count], labels=self.labels[:count], memo={})

    def once(self, what: Any, make: Callable[[], T]) -> T:
        """``make()``, called once for each `what`."""
        if what not in self.memo:
            self.memo[what] = make()
        found: T = self.memo[what]
        return found

    def settings(self) -> dict[str, Any]:
        """What of it belongs in the cell of a check."""
        return {
            "samples": len(self.images),
            "batch_size": self.batch_size,
            "norm": self.norm,
            "strength": self.eps,
            "solver": solver_names(self.model, self.images),
            "parameters": {
                "long_steps": self.long_steps,
                "apgd_steps": self.apgd_steps,
                "targets": self.targets,
                "queries": self.queries,
                "spsa_steps": self.spsa_steps,
            },
        }

    @property
    def queried(self) -> CheckedModel:
        """The model behind a counter that refuses NaN."""
        return self.once("queried", lambda: CheckedModel(self.model, self.num_classes))

    def solver_calls(self) -> list[SolverCall]:
        """The solves of one forward pass on two of the images; observed once."""
        return self.once("solver calls", lambda: observe(self.model, self.images[:2]))

    def without_solver(self) -> AuditResult:
        """What an audit of the solver says where `solver_calls` is empty.

        It does not apply to a model that is known to solve no ODE, and is not asked of another.
        """
        if "no_ode" in self.spec.claims:
            return not_applicable("The model says that it solves no ODE (its claim no_ode).")
        if known_without_solver(self.model):
            return not_applicable("The model is made of layers that solve no ODE.")
        return not_asked(
            "Could not look inside: in a forward pass no call of torchdiffeq, torchdyn, torchode or an ODE "
            "block was seen. A model that solves no ODE says so by the claim no_ode."
        )

    def generator(self, *what: object) -> torch.Generator:
        """A generator on the CPU for one use `what` of random numbers: an audit's name, and where in it."""
        return stream_generator(Purpose.AUDIT, self.seed, *what)

    def logits(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """Logits (N, K), without gradients, in batches of `batch_size`."""
        asked = self.queried if model is None else CheckedModel(model, self.num_classes)
        with frozen(asked.model), torch.no_grad():
            return torch.cat([asked(part) for part in images.split(self.batch_size)])

    def logits_with_gradients(self) -> Tensor:
        """Logits (N, K) of the images, detached, as an attack asks: with gradients recorded. Asked once."""

        def ask() -> Tensor:
            with frozen(self.model):
                parts = self.images.split(self.batch_size)
                return torch.cat([asked_with_gradients(self.queried, part) for part in parts])

        return self.once("logits with gradients", ask)

    def distance(self, logits: Tensor, other: Tensor) -> Tensor:
        """How far apart two answers (N, K) to the same images are, (N,): after normalisation, in l2.

        If `strict`, in l-infinity and relative to `logits`, so that a change of scale counts too.
        """
        if not self.strict:
            distance: Tensor = (normalised(logits) - normalised(other)).norm(dim=1)
            return distance
        size = logits.double().abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
        apart: Tensor = (logits.double() - other.double()).abs().amax(1) / size
        return apart

    def correct(self, images: Tensor | None = None, model: nn.Module | None = None) -> Tensor:
        """Which samples are classified correctly as `images` (N, C, H, W), bool (N,)."""
        if images is None:
            name = ("correct", id(model))
            return self.once(name, lambda: self.correct(self.images, model))
        return self.logits(images, model).argmax(1) == self.labels

    def threat(self, name: str, **parameters: Any) -> Threat:
        """The threat `name` in the norm of the audit: ``pgd`` is ``pgd-linf`` or ``pgd-l2``."""
        full = name if name in THREATS else f"{name}-{self.norm}"
        return THREATS.get(full).configure(**parameters)

    def perturbed(
        self,
        threat: Threat,
        *,
        rows: Tensor | None = None,
        model: nn.Module | None = None,
        eps: float | None = None,
    ) -> Tensor:
        """Images (N, C, H, W): the samples `rows` (k,) attacked through `model`, the others as they are.

        FGSM and PGD go on to the last step where `model` is another: its examples are for the audited one.
        """
        rows = torch.arange(len(self.images), device=self.device) if rows is None else rows
        asked = self.queried if model is None else CheckedModel(model, self.num_classes)
        images = self.images.clone()
        with frozen(asked.model):
            for part in rows.split(self.batch_size):
                seeds = stream_seeds(Purpose.AUDIT, self.seed, 0, part.tolist())
                with (
                    attacking(threat.craft),
                    torch.set_grad_enabled(threat.needs_gradient),
                    solved_as_forward(asked.model),
                ):
                    strength = self.eps if eps is None else eps
                    attacked = (asked, self.images[part].clone(), self.labels[part], strength, seeds)
                    found = threat(*attacked, early_stopping=model is None)
                images[part] = found.detach()
        return images

    def survives(
        self,
        threat: Threat,
        *,
        among: Tensor | None = None,
        model: nn.Module | None = None,
        eps: float | None = None,
    ) -> Tensor:
        """Which samples keep their class on the model itself under `threat` through `model`, bool (N,).

        Only the samples `among`, bool (N,), are attacked, those classified correctly unless given; the
        others do not survive.
        """
        among = self.correct() if among is None else among
        rows = among.nonzero().flatten()
        if not len(rows):
            return among.clone()
        images = self.perturbed(threat, rows=rows, model=model, eps=eps)
        survived = torch.zeros_like(among)
        survived[rows] = self.logits(images[rows]).argmax(1) == self.labels[rows]
        return survived

    def pgd(self) -> Tensor:
        """Which samples survive PGD-20 with two restarts, bool (N,); run once."""
        return self.once("pgd", lambda: self.survives(self.threat("pgd", steps=20, restarts=2)))

    def long_pgd(self) -> Tensor:
        """Which samples survive PGD-20 and then PGD of `long_steps`, bool (N,); run once."""
        threat = self.threat("pgd", steps=self.long_steps, restarts=1)
        return self.once("long pgd", lambda: self.survives(threat, among=self.pgd()))

    def apgd_ce(self, among: Tensor | None = None, eps: float | None = None) -> Tensor:
        """Which of the samples `among`, all unless given, survive APGD-CE, bool (N,)."""
        return self.survives(self.threat("apgd-ce", steps=self.apgd_steps), among=among, eps=eps)

    def apgd_t(self, among: Tensor, eps: float | None = None) -> Tensor:
        """Which of the samples `among` survive APGD-T, bool (N,)."""
        threat = self.threat("apgd-t", steps=self.apgd_steps, targets=self.targets)
        return self.survives(threat, among=among, eps=eps)

    def apgd(self) -> tuple[Tensor, Tensor]:
        """Which samples survive APGD-CE, and which of these APGD-T too, bool (N,) each; run once."""

        def attack() -> tuple[Tensor, Tensor]:
            untargeted = self.apgd_ce()
            return untargeted, self.apgd_t(untargeted)

        return self.once("apgd", attack)

    def white_box(self) -> Tensor:
        """Which samples survive every white-box attack of the audit and of the records, bool (N,)."""
        left = self.long_pgd() & self.apgd()[1]
        known = self.stored.broken(self.norm, self.eps)
        if known is not None:
            count = min(len(known), len(left))
            left[:count] &= ~torch.from_numpy(known[:count]).to(left)
        return left

    def attack_under_test(self) -> Threat:
        """The strongest stored gradient attack of the audit's norm and eps, as configured; else PGD-20.

        Strongest by the gradients it asks for.
        """
        stored = [
            r.cell
            for r in self.stored.attacks(self.norm)
            if r.cell.family == "gradient"
            and abs(r.cell.strength - self.eps) < 1e-9
            and r.cell.threat in THREATS
        ]
        threats = [_as_stored(cell) for cell in stored]
        return max(threats, key=lambda t: t.queries(t.parameters)[1], default=self.threat("pgd"))


def _as_stored(cell: Cell) -> Threat:
    """The threat of `cell` as it was configured; of a curve, at one strength, without its grid."""
    threat = THREATS.get(cell.threat)
    return threat.configure(**{k: v for k, v in cell.parameters.items() if k in threat.parameters})
