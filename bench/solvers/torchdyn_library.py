"""torchdyn: ``NeuralODE`` and the problems it is made of, and the functions ``torchdyn.numerics.odeint*``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from .recording import CountedField, FunctionCall, SolverFunction
from .solver_call import CannotSolveOtherwise, SolverCall, SolverChange
from .torchdiffeq_library import described, solve_changed

_METHODS = {
    "Euler": ("euler", "euler"),
    "Midpoint": ("midpoint", "midpoint"),
    "RungeKutta4": ("rk4", "rk4"),
    "DormandPrince45": ("dopri5", "dopri5"),
    "Tsitouras45": ("tsit5", "dopri5"),
}
"""By class: torchdyn's short name, and the method of torchdiffeq that is the same or of the same order."""
_ADJOINT = ("_gather_odefunc_adjoint.", "_gather_odefunc_interp_adjoint.")
"""Begin the qualified names of the fields that torchdyn solves in a backward pass."""


class _Torchdyn(SolverFunction):
    def adaptive(self, arguments: Mapping[str, Any]) -> bool:
        """As the solver's stepping class says."""
        return _is_adaptive(self.solver(arguments))

    def solver(self, arguments: Mapping[str, Any]) -> Any:
        """The name or the object of the solver."""
        return arguments["solver"]

    def times(self, arguments: Mapping[str, Any]) -> Tensor:
        """When the solution is asked for."""
        span = arguments["t_span"]
        return torch.cat(list(span)) if isinstance(span, list) else span

    def asked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What torchdiffeq's ``odeint`` would be asked; on a fixed grid the steps are those of the times."""
        adaptive = self.adaptive(arguments)
        other = "dopri5" if adaptive else "rk4"
        return {
            "func": arguments["f"],
            "y0": arguments["x"],
            "t": self.times(arguments).to(arguments["x"].device),
            "rtol": arguments.get("rtol", 1e-3),
            "atol": arguments.get("atol", 1e-3),
            "method": _METHODS.get(_class_of(self.solver(arguments)), ("", other))[1],
            "options": None,
            "event_fn": None,
        }

    def state(self, arguments: Mapping[str, Any]) -> Tensor:
        """Samples along the first axis."""
        state: Tensor = arguments["x"]
        return state

    def describe(self, arguments: Mapping[str, Any]) -> SolverCall:
        """The call as it is, by torchdyn's name of the method."""
        return described("torchdyn", self.asked(arguments), method=_name(self.solver(arguments)))

    def run(self, call: FunctionCall) -> Any:
        """Call it as it was called, its field counted."""
        return call.answer(f=CountedField.of(call.arguments["f"], call.evaluations))

    def run_otherwise(self, call: FunctionCall, change: SolverChange) -> Any:
        """Times and solution, by torchdiffeq."""
        asked = self.asked(call.arguments)
        return _answer(asked, solve_changed(asked, change, adjoint=False), call.arguments.get("save_at", ()))


class Odeint(_Torchdyn):
    """``odeint``, ``odeint_symplectic``, ``odeint_mshooting`` and ``odeint_hybrid``."""

    def solves_adjoint(self, arguments: Mapping[str, Any]) -> bool:
        """Whether torchdyn asks itself, in a backward pass."""
        return str(getattr(arguments["f"], "__qualname__", "")).startswith(_ADJOINT)

    def run_otherwise(self, call: FunctionCall, change: SolverChange) -> Any:
        """As above; a hybrid or symplectic system is more than a field."""
        if self.function.__name__ not in ("odeint", "odeint_mshooting"):
            raise CannotSolveOtherwise(f"torchdyn's {self.function.__name__} solves more than a field")
        return super().run_otherwise(call, change)


class Problem(_Torchdyn):
    """``ODEProblem.odeint`` and ``MultipleShootingProblem.odeint``, which `NeuralODE` calls."""

    def solver(self, arguments: Mapping[str, Any]) -> Any:
        """The problem's own."""
        problem = arguments["self"]
        return getattr(problem, "parallel_solver", None) or problem.solver

    def asked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The problem's field and tolerances."""
        problem = arguments["self"]
        settings = {"f": problem.vf, "rtol": problem.rtol, "atol": problem.atol}
        return super().asked({**arguments, **settings})

    def describe(self, arguments: Mapping[str, Any]) -> SolverCall:
        """The call as it is."""
        adjoint = arguments["self"].sensalg != "autograd"
        return described(
            "torchdyn", self.asked(arguments), method=_name(self.solver(arguments)), adjoint=adjoint
        )

    def run(self, call: FunctionCall) -> Any:
        """Call it as it was called; the function that it calls counts."""
        return call.answer()

    def run_otherwise(self, call: FunctionCall, change: SolverChange) -> Any:
        """Times and solution, by torchdiffeq."""
        asked, problem = self.asked(call.arguments), call.arguments["self"]
        if problem.integral_loss is not None:
            raise CannotSolveOtherwise("torchdyn's integral loss is part of what is solved")
        solution = solve_changed(asked, change, adjoint=problem.sensalg != "autograd")
        return _answer(asked, solution, call.arguments.get("save_at", ()))


def functions() -> list[tuple[type[SolverFunction], FunctionType]]:
    """The functions that are intercepted, and how; none while torchdyn is not imported."""
    found: list[tuple[type[SolverFunction], FunctionType]] = []
    numerics = sys.modules.get("torchdyn.numerics.odeint")
    for name in ("odeint", "odeint_symplectic", "odeint_mshooting", "odeint_hybrid"):
        if hasattr(numerics, name):
            found.append((Odeint, getattr(numerics, name)))
    problems = sys.modules.get("torchdyn.core.problems")
    for name in ("ODEProblem", "MultipleShootingProblem"):
        if hasattr(problems, name):
            found.append((Problem, getattr(problems, name).odeint))
    return found


def _class_of(solver: Any) -> str:
    """``DormandPrince45`` for such an object and for the names of it; another name as it is."""
    known = getattr(sys.modules.get("torchdyn.numerics.solvers.ode"), "SOLVER_DICT", {})
    if isinstance(solver, str):
        return known[solver].__name__ if solver in known else solver
    return type(solver).__name__


def _name(solver: Any) -> str:
    name = _class_of(solver)
    return _METHODS.get(name, (name, ""))[0]


def _is_adaptive(solver: Any) -> bool:
    if isinstance(solver, str):
        return _METHODS.get(_class_of(solver), ("", ""))[1] == "dopri5"
    return getattr(solver, "stepping_class", "fixed") == "adaptive"


def _answer(asked: Mapping[str, Any], solution: Tensor, save_at: Any) -> tuple[Tensor, Tensor]:
    """Times and solution as torchdyn returns them: at `save_at`, which are some of the times, if given."""
    times = asked["t"]
    if len(save_at):
        at = torch.as_tensor(save_at).to(times)
        rows = [int((times - time).abs().argmin()) for time in at]
        return times[rows], solution[rows]
    return times, solution
