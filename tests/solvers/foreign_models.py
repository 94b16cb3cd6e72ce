"""Tiny classifiers as users of torchdiffeq, torchdyn and torchode write them, with names bound early."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint
from torchdiffeq import odeint_adjoint as solve_adjoint

WIDTH, CLASSES = 5, 3
IMAGES = torch.rand(6, 1, 2, 4, generator=torch.Generator().manual_seed(3))


class Field(nn.Module):
    """x' = tanh(W x + b) - x / 2, which counts its own calls and never sets the count back."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.nfe = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        return torch.tanh(self.linear(x)) - 0.5 * x


class Classifier(nn.Module):
    """A linear stem, `flow` and a linear head."""

    def __init__(self, flow: nn.Module, pixels: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem, self.flow, self.head = nn.Linear(pixels, WIDTH), flow, nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.flow(self.stem(images.flatten(1))))


class Diffeq(nn.Module):
    """torchdiffeq called with `settings`."""

    def __init__(self, solve: Callable = odeint, times: tuple[float, ...] = (0.0, 1.0), **settings) -> None:
        super().__init__()
        self.field, self.solve, self.settings = Field(), solve, settings
        self.register_buffer("times", torch.tensor(times))

    def forward(self, x: Tensor) -> Tensor:
        return self.solve(self.field, x, self.times.to(x), **self.settings)[-1]


class Checkpointed(Diffeq):
    """Solves again in the backward pass, instead of keeping what it computed."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class TupleState(nn.Module):
    """A state of two tensors: augmented zeros, and an energy that is left out."""

    def __init__(self, solve: Callable = odeint, **settings) -> None:
        super().__init__()
        self.linear, self.solve, self.settings = nn.Linear(WIDTH + 1, WIDTH + 1), solve, settings

    def field(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, _ = state
        derivative = torch.tanh(self.linear(x))
        return derivative, (derivative**2).sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.cat([x, x[:, :1] * 0], 1), x[:, :1] * 0
        times = torch.tensor([0.0, 1.0]).to(x)
        if self.solve is solve_adjoint:
            self.settings["adjoint_params"] = tuple(self.linear.parameters())
        return self.solve(self.field, start, times, **self.settings)[0][-1][:, :WIDTH]


class Twice(nn.Module):
    """Two solves in a forward pass, in a loop over layers."""

    def __init__(self, *flows: nn.Module) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, x: Tensor) -> Tensor:
        for flow in self.flows:
            x = flow(x)
        return x


class HandWritten(nn.Module):
    """A loop of Euler steps, into which nothing can look."""

    def __init__(self) -> None:
        super().__init__()
        self.field = Field()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x + 0.25 * self.field(torch.zeros(()), x)
        return x


class Torchdyn(nn.Module):
    """torchdyn's `NeuralODE`, whose `times` are its grid where the solver is on a fixed one."""

    def __init__(self, times: int = 2, return_t_eval: bool = True, **settings) -> None:
        super().__init__()
        from torchdyn.core import NeuralODE

        self.ode = NeuralODE(Dyn(), return_t_eval=return_t_eval, **settings)
        self.count = times

    def forward(self, x: Tensor) -> Tensor:
        found = self.ode(x, torch.linspace(0, 1, self.count))
        return found[1][-1] if isinstance(found, tuple) else found[-1]


class Dyn(Field):
    """torchdyn asks for arguments of these names."""

    def forward(self, t: Tensor, x: Tensor, args: object = None) -> Tensor:
        return super().forward(t, x)


class TorchdynFunction(nn.Module):
    """torchdyn's ``odeint`` itself."""

    def __init__(self, solver: object, count: int = 2) -> None:
        super().__init__()
        from torchdyn.numerics import odeint

        self.solve, self.field, self.solver, self.count = odeint, Field(), solver, count

    def forward(self, x: Tensor) -> Tensor:
        return self.solve(self.field, x, torch.linspace(0, 1, self.count).to(x), self.solver)[1][-1]


class Torchode(nn.Module):
    """torchode's solver: adaptive, or on a fixed grid of steps of length `dt`."""

    def __init__(
        self, kind: str = "AutoDiffAdjoint", dt: float | None = None, points: int | None = None
    ) -> None:
        super().__init__()
        import torchode

        term = torchode.ODETerm(Field())
        method = torchode.Dopri5(term=term) if dt is None else torchode.Heun(term=term)
        controller = (
            torchode.IntegralController(atol=1e-4, rtol=1e-3, term=term)
            if dt is None
            else torchode.FixedStepController()
        )
        parts = (method, controller) if kind == "AutoDiffAdjoint" else (term, method, controller)
        self.adjoint = getattr(torchode, kind)(*parts)
        self.problem, self.dt, self.points = torchode.InitialValueProblem, dt, points

    def forward(self, x: Tensor) -> Tensor:
        start, end = torch.zeros(len(x)).to(x), torch.ones(len(x)).to(x)
        times = None if self.points is None else torch.linspace(0, 1, self.points).to(x).repeat(len(x), 1)
        dt0 = None if self.dt is None else torch.full_like(start, self.dt)
        problem = self.problem(x, start, end, times)
        return self.adjoint.solve(problem, dt0=dt0).ys[:, -1]


def build(flow: Callable[[], nn.Module], *shape: int) -> nn.Module:
    """A classifier around a flow that draws its weights from seed 0; `shape` is pixels and classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(flow(), *shape).eval()


euler = {"method": "euler"}
grid = tuple(i / 4 for i in range(5))

MODELS: dict[str, Callable[[], nn.Module]] = {
    "odeint": partial(Diffeq, rtol=1e-3, atol=1e-4),
    "adjoint": partial(Diffeq, solve_adjoint, method="dopri5", rtol=1e-3, atol=1e-4),
    "partial": lambda: Diffeq(partial(torchdiffeq.odeint, rtol=1e-3, atol=1e-3, method="bosh3")),
    "many times": partial(Diffeq, times=grid, method="euler"),
    "step size": partial(Diffeq, method="rk4", options={"step_size": 0.3}),
    "perturbed": partial(Diffeq, method="midpoint", options={"step_size": 0.25, "perturb": True}),
    "adjoint grid": partial(Diffeq, solve_adjoint, method="rk4", options={"step_size": 0.25}),
    "backwards": partial(Diffeq, times=(1.0, 0.0), method="heun2", options={"step_size": 0.25}),
    "tuple": partial(TupleState, rtol=1e-3, atol=1e-3),
    "tuple adjoint": partial(TupleState, solve_adjoint, rtol=1e-3, atol=1e-3),
    "adams": partial(Diffeq, method="explicit_adams", options={"step_size": 0.125}),
    "twice": lambda: Twice(Diffeq(method="euler"), Diffeq(solve_adjoint, method="rk4")),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Identity(), Diffeq(rtol=1e-3, atol=1e-3)), nn.Identity()
    ),
    "torchdyn": partial(Torchdyn, solver="dopri5", atol=1e-3, rtol=1e-3),
    "torchdyn tsit5": partial(Torchdyn, solver="tsit5", return_t_eval=False),
    "torchdyn euler": partial(Torchdyn, 6, solver="euler"),
    "torchdyn adjoint": partial(Torchdyn, solver="dopri5", sensitivity="adjoint", atol=1e-3, rtol=1e-3),
    "torchdyn interpolated": partial(Torchdyn, 4, solver="rk4", sensitivity="interpolated_adjoint"),
    "torchdyn function": lambda: TorchdynFunction("rk4", 5),
    "torchode": Torchode,
    "torchode points": partial(Torchode, points=3),
    "torchode fixed": partial(Torchode, dt=0.25),
    "torchode backsolve": partial(Torchode, "BacksolveAdjoint"),
    "torchode joint": partial(Torchode, "JointBacksolveAdjoint"),
}
