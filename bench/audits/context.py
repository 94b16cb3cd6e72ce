"""What a check that asks the model is given: the model, samples, and shared answers to costly questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...attacks import THREATS, Threat
from ...attacks.core.seeds import Purpose, stream_generator, stream_seeds
from ...attacks.core.types import Norm
from ...models import ModelSpec
from ..evaluation.accuracy import frozen
from ..records.record import Cell
from ..runtime.foreign_code import attacking
from ..solvers.changed_model import solved_as_forward
from ..solvers.observe import observe
from ..solvers.solver_call import SolverCall
from ..solvers.without_solver import known_without_solver
from ..training.provenance import solver_names
from .asked_model import AskedModel
from .registry import AuditResult, not_applicable, not_asked
from .stored_records import StoredRecords

DEFAULT_EPS = {"linf": 0.1, "l2": 0.5}
"""Where the leaderboard reports no strength."""


@dataclass(frozen=True, kw_only=True)
class Context(AskedModel):
    """One model and what is known of it; the attacks that audits share.

    Attributes
    ----------
    dataset
        What the samples are of.
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
    """

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
        asked = self._asked(model)
        images = self.images.clone()
        with frozen(asked.model):
            for part in rows.split(self.batch_size):
                numbers = [self.numbers[row] for row in part.tolist()]
                seeds = stream_seeds(Purpose.AUDIT, self.seed, 0, numbers)
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
        survived[rows] = self.predicted(images[rows]) == self.labels[rows]
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
            numbers = torch.tensor(self.numbers)
            inside = numbers < len(known)
            left[inside] &= ~torch.from_numpy(known)[numbers[inside]].to(left)
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
