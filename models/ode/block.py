"""The ODE block: a module that solves a neural ODE, counts field evaluations and bounds its own map."""

from __future__ import annotations

import torch
from torch import nn

from .lipschitz import (
    CONVEX_COMBINATIONS,
    MAX_ENUMERATED_STATE,
    NONNEGATIVE_TABLEAUS,
    NoCertificate,
    TanhForm,
    flow_bounds,
)
from .solved_flow import SolvedFlow


class ODEBlock(SolvedFlow):
    """Neural ODE: maps x(0) to x(T), where x' = f_j(x) over the j-th of equal parts of [0, T].

    Layers that state their matrices (see `MatrixField`) are solved by compiled steps where there are some,
    others and all under ``use_ode_backend("torchdiffeq")`` by torchdiffeq; both agree to rounding.

    Parameters
    ----------
    layers
        One field f_j per part; each maps a state, any shape, to its derivative, same shape: columns (n, M),
        rows (N, d), images (N, C, H, W). Trajectories, contraction and sensitivity are followed for each
        column of a layer that states its matrices, and else for each image, whose state may have any shape.
    final_time
        T > 0, in units of the model's own time.
    solver
        How the ODE is solved. On a fixed grid every layer takes ``solver.steps / len(layers)`` steps.
    time_dependent
        Whether layers take the time too, as ``layer(time, state)``: a tensor () from 0 to `final_time`.
    adjoint
        Whether gradients come from the adjoint equation, solved backwards by the same solver: they need no
        memory for the steps, and are those of the exact flow rather than of the solver's map. Such a block
        is solved by torchdiffeq.

    Attributes
    ----------
    nfe
        Number of field evaluations of the last forward pass, summed over the layers.

    Raises
    ------
    InvalidArgument
        When ``solver.steps`` is no multiple of ``len(layers)``, `final_time` is not positive, a layer that
        states its matrices is to depend on time, or ``ssprk3`` is to have an adjoint.

    References
    ----------
    Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018,
    arXiv 1806.07366, eq. 2.

    Examples
    --------
    >>> layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    >>> block = ODEBlock([layer], final_time=1.0, solver=Solver(method="heun2", steps=8))
    >>> block(torch.zeros(3, 4)).shape, block.nfe
    (torch.Size([3, 4]), 16)
    """

    def bounds(self) -> dict[str, float]:
        """Return constants of the exact flow that its design guarantees, by name; empty in general."""
        return {}

    @torch.no_grad()
    def tanh_forms(self) -> list[TanhForm]:
        """Return the matrices of `tanh_fields`, detached, in float64 and without the offsets b."""
        return [field.form() for field in self.tanh_fields()]

    @torch.no_grad()
    def lipschitz_bounds(self) -> dict[str, float]:
        """Return l2 Lipschitz bounds of the exact flow and of the solver's map, from the layers' tanh fields.

        Returns
        -------
        dict
            ``exact_flow``, the bound exp(sum_j mu_2(j) T / N), mu_2(j) the largest logarithmic norm of layer
            j's Jacobian; and on a fixed grid with a known bound ``solver``, the product of the bounds of its
            steps, and ``worst_step``, the largest of these.

        Raises
        ------
        NoCertificate
            When the layers do not state their matrices, or these are too large to enumerate Jacobians.
        """
        if not self.has_tanh_fields():
            raise NoCertificate("the flow's layers do not state their matrices (robustode.MatrixField)")
        forms = self.tanh_forms()
        if any(len(form.B) > MAX_ENUMERATED_STATE for form in forms):
            raise NoCertificate(
                f"a state of more than {MAX_ENUMERATED_STATE} channels has too many Jacobians to enumerate"
            )
        known = self.solver.method in CONVEX_COMBINATIONS or self.solver.method in NONNEGATIVE_TABLEAUS
        return flow_bounds(
            forms,
            final_time=self.final_time,
            method=self.solver.method,
            steps=self.steps_per_layer() if known else None,
        )

    def solver_bound(self) -> float:
        """Return an l2 Lipschitz bound of the solver's map: the product of its steps' bounds.

        Raises
        ------
        NoCertificate
            For an adaptive method, whose tolerance does not bound its error, and where no bound is known.
        """
        if self.solver.adaptive:
            raise NoCertificate("an adaptive solver's error is not bounded by its tolerance")
        bounds = self.lipschitz_bounds()
        if "solver" not in bounds:
            raise NoCertificate(f"no Lipschitz bound is known for a step of {self.solver.method}")
        return bounds["solver"]


def ode_blocks(model: nn.Module) -> list[ODEBlock]:
    """The ODE blocks among the modules of `model`, those inside another one too."""
    return [module for module in model.modules() if isinstance(module, ODEBlock)]
