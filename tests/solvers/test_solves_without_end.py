"""An adaptive solve that cannot go on ends, with and without torchdiffeq's own assertions (``python -O``)."""

from __future__ import annotations

import inspect

import pytest
import torch
from robustode.bench.runtime.time_limit import time_limit
from robustode.bench.solvers.column_flow import column_flows
from robustode.bench.solvers.observe import solvers_changed
from robustode.bench.solvers.solver_call import SolverChange
from robustode.models import ODEBlock, Solver, SolverFailure
from torch import Tensor, nn
from torchdiffeq import odeint
from torchdiffeq._impl import rk_common

WHY = "(underflow in dt|non-finite values in state)"


@pytest.fixture(params=["python", "python -O"])
def optimised(request, monkeypatch) -> None:
    """Adaptive steps of torchdiffeq as ``python -O`` runs them."""
    if request.param == "python":
        return
    file = inspect.getsourcefile(rk_common)
    made = {"__name__": rk_common.__name__, "__package__": rk_common.__package__}
    exec(compile(inspect.getsource(rk_common), file, "exec", optimize=1), made)
    solver = rk_common.RKAdaptiveStepsizeODESolver
    for name in ("_adaptive_step", "_advance"):
        monkeypatch.setattr(solver, name, getattr(made[solver.__name__], name))


class Explodes(nn.Module):
    """x' = x^2: from 1, infinite at t = 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Blind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nan


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun", "dopri8"])
@pytest.mark.parametrize("field", [Explodes, Blind])
def test_a_block_that_cannot_be_solved_fails(field, method) -> None:
    block = ODEBlock([field()], final_time=2.0, solver=Solver(method=method))
    with time_limit(20, "the solve"), pytest.raises(SolverFailure, match=f"{method} failed: {WHY}"):
        block(torch.ones(2, 3))


class Net(nn.Module):
    """Solves by torchdiffeq itself; `pole` is the time at which a state of 1 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.pole = 4.0
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.ones_like(images.flatten(1))
        path = odeint(lambda t, y: y * y / self.pole, x, torch.tensor([0.0, 2.0]).to(x), method="dopri5")
        return self.head(path[-1])


@pytest.mark.usefixtures("optimised")
def test_a_surrogate_that_cannot_be_solved_fails() -> None:
    net = Net()
    net.pole = 1.0
    change = SolverChange(rtol=1e-4, atol=1e-4)
    with time_limit(20, "the solve"), solvers_changed(change), pytest.raises(SolverFailure, match=WHY):
        net(torch.rand(2, 1, 4, 4))


@pytest.mark.usefixtures("optimised")
def test_a_step_of_a_flow_that_cannot_be_solved_fails() -> None:
    net = Net()
    (flow,) = column_flows(net, torch.rand(2, 1, 4, 4))
    states = flow.states
    assert flow.steps[0](states).isfinite().all()
    with time_limit(20, "the solve"), pytest.raises(SolverFailure, match=WHY):
        flow.steps[0](states * 1e30)


def test_a_callback_of_the_field_is_called_all_the_same() -> None:
    class Watched(Explodes):
        def callback_step(self, time, state, step) -> None:
            seen.append(float(time))

    seen: list[float] = []
    field = Watched()
    from robustode.models import CheckedField

    class WithTime:
        callback_step = field.callback_step

        def __call__(self, time, x):
            return field(x)

    odeint(CheckedField(WithTime(), "dopri5"), torch.ones(2), torch.tensor([0.0, 0.5]), method="dopri5")
    assert seen[0] == 0.0
    assert seen == sorted(seen)
