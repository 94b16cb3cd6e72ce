"""torchode: its adjoints, each of which has a method ``solve``; `solve_ivp` calls the first of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from .recording import CountedField, Evaluations, FunctionCall, SolverFunction
from .solver_call import CannotSolveOtherwise, SolverCall, SolverChange
from .torchdiffeq_library import described, solve_changed

_ADJOINTS = ("AutoDiffAdjoint", "BacksolveAdjoint", "JointBacksolveAdjoint")
_ADAPTIVE, _FIXED = {"Heun": "adaptive_heun"}, {"Heun": "heun2", "Euler": "euler"}
"""The methods of torchdiffeq that are the same; of the others, dopri5 and rk4 are of about the same order."""
_AUGMENTED = ("AugmentedDynamicsTerm", "JointAugmentedDynamicsTerm")
"""The terms that torchode solves in a backward pass."""


class Solve(SolverFunction):
    """``AutoDiffAdjoint.solve(self, problem, term, dt0, args)``, and that of the other adjoints."""

    def solves_adjoint(self, arguments: Mapping[str, Any]) -> bool:
        """Whether torchode asks itself, in a backward pass."""
        return type(arguments["term"]).__name__ in _AUGMENTED

    def adaptive(self, arguments: Mapping[str, Any]) -> bool:
        """As the class of the controller says."""
        return type(self._loop(arguments).step_size_controller).__name__ != "FixedStepController"

    def state(self, arguments: Mapping[str, Any]) -> Tensor:
        """Samples along the first axis."""
        state: Tensor = arguments["problem"].y0
        return state

    def describe(self, arguments: Mapping[str, Any]) -> SolverCall:
        """The call as it is; each sample has its own steps, unless a joint adjoint takes the batch as one."""
        loop, kind = self._loop(arguments), type(arguments["self"]).__name__
        asked = self.asked(arguments)
        return described(
            "torchode",
            asked,
            method=type(loop.step_method).__name__.lower(),
            adjoint=kind != "AutoDiffAdjoint",
            couples_samples=self.adaptive(arguments) and kind == "JointBacksolveAdjoint",
        )

    def asked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What torchdiffeq's ``odeint`` would be asked, time running from 0 to 1 for every sample."""
        problem, loop = arguments["problem"], self._loop(arguments)
        method, adaptive = type(loop.step_method).__name__, self.adaptive(arguments)
        start, length = problem.t_start, problem.t_end - problem.t_start
        term = self._terms(arguments)[0]

        def field(time: Tensor, y: Tensor) -> Tensor:
            at = start + time.to(start) * length
            derivative: Tensor = length.to(y)[:, None] * term.vf(at, y, _stats(y), arguments["args"])
            return derivative

        asked: dict[str, Any] = {
            "func": field,
            "y0": problem.y0,
            "t": _times(problem),
            "rtol": getattr(loop.step_size_controller, "rtol", 1e-3),
            "atol": getattr(loop.step_size_controller, "atol", 1e-3),
            "method": _ADAPTIVE.get(method, "dopri5") if adaptive else _FIXED.get(method, "rk4"),
            "options": None,
            "event_fn": None,
        }
        if not adaptive:
            asked["options"] = {"step_size": float((arguments["dt0"] / length).abs().max())}
        return asked

    def run(self, call: FunctionCall) -> Any:
        """Call it as it was called, with a term that counts, or calls another that does."""
        if type(call.arguments["self"]).__name__ != "AutoDiffAdjoint":
            return call.answer()
        with _counted(self._terms(call.arguments), call.evaluations):
            return call.answer()

    def run_otherwise(self, call: FunctionCall, change: SolverChange) -> Any:
        """A solution as torchode returns it, by torchdiffeq, with the statistics that are known."""
        problem = call.arguments["problem"]
        adjoint = type(call.arguments["self"]).__name__ != "AutoDiffAdjoint"
        if problem.t_eval is not None and not _share_times(problem):
            raise CannotSolveOtherwise("torchode evaluates the samples at different parts of their times")
        path = solve_changed(self.asked(call.arguments), change, adjoint=adjoint).transpose(0, 1)
        times = problem.t_end[:, None] if problem.t_eval is None else problem.t_eval
        path = path[:, -times.shape[1] :]
        none = torch.zeros(problem.batch_size, dtype=torch.long, device=problem.device)
        stats = {name: none.clone() for name in ("n_steps", "n_accepted", "n_f_evals")}
        stats["n_f_evals"] += call.evaluations.count
        stats["n_initialized"] = none + path.shape[1]
        solution = sys.modules["torchode.solution"].Solution
        return solution(ts=times, ys=path, stats=stats, status=none)

    def _loop(self, arguments: Mapping[str, Any]) -> Any:
        """The `AutoDiffAdjoint` that steps forwards."""
        adjoint = arguments["self"]
        for name in ("forward_adjoint", "forward_loop"):
            adjoint = getattr(adjoint, name, adjoint)
        return adjoint

    def _terms(self, arguments: Mapping[str, Any]) -> list[Any]:
        """The terms that are evaluated, the one of the steps first."""
        adjoint, term = arguments["self"], arguments["term"]
        if type(adjoint).__name__ != "AutoDiffAdjoint":
            return [getattr(adjoint.term, "term", adjoint.term)]  # a joint adjoint wraps the model's own
        if term is not None:
            return [term]
        parts = (adjoint.step_method, adjoint.step_size_controller)
        terms = [getattr(part, "term", None) for part in parts]
        return list({id(one): one for one in terms if one is not None}.values())


def functions() -> list[tuple[type[SolverFunction], FunctionType]]:
    """The functions that are intercepted, and how; none while torchode is not imported."""
    module = sys.modules.get("torchode.adjoints")
    return [(Solve, getattr(module, name).solve) for name in _ADJOINTS if hasattr(module, name)]


def _parts(problem: Any) -> Tensor:
    """The times of evaluation, as parts (N, k) of each sample's own time."""
    length: Tensor = (problem.t_end - problem.t_start)[:, None]
    parts: Tensor = (problem.t_eval - problem.t_start[:, None]) / length
    return parts


def _share_times(problem: Any) -> bool:
    parts = _parts(problem)
    return float((parts - parts[:1]).abs().max()) <= 1e-6


def _times(problem: Any) -> Tensor:
    """0, the parts at which the first sample is evaluated, and 1 where no others are."""
    ends = torch.tensor([0.0, 1.0], dtype=problem.time_dtype, device=problem.device)
    if problem.t_eval is None:
        return ends
    parts = _parts(problem)[0]
    return parts if float(parts[0]) <= 0 else torch.cat([ends[:1], parts])


def _stats(y: Tensor) -> dict[str, Any]:
    return {"n_f_evals": torch.zeros(len(y), dtype=torch.long)}


@contextmanager
def _counted(terms: list[Any], evaluations: Evaluations) -> Iterator[None]:
    """Count the evaluations of each term; a term that a caller of this counts already is left as it is."""
    counted = [term for term in terms if not isinstance(term.__dict__.get("vf"), CountedField)]
    before = [term.__dict__.get("vf") for term in counted]
    try:
        for term in counted:
            term.__dict__["vf"] = CountedField(term.vf, evaluations)
        yield
    finally:
        for term, own in zip(counted, before, strict=True):
            if own is None:
                term.__dict__.pop("vf", None)
            else:
                term.__dict__["vf"] = own
