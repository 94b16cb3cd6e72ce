"""Operations and bytes of flows: closed forms by hand, and what a counter sees of the same formulas."""

from __future__ import annotations

import pytest
import torch
from robustode import ODEBlock, Solver
from robustode.bench.throughput.flop_count import OperationCounter, flow_work, tanh_operations
from robustode.models import MODELS
from robustode.models.ode.solver import SHU_OSHER_ALPHAS, shu_osher
from robustode.models.ode.tanh_field import TanhField
from torch import nn
from torch.nn import functional as F

N, M = 3, 5


def field(linear: bool = False, gradient: bool = True, diagonal: bool = False, n: int = N) -> TanhField:
    """A field with full matrices, or with A = I that needs no gradient."""
    generator = torch.Generator().manual_seed(0)
    A, B, C, b = (0.5 * torch.randn(n, k, generator=generator) for k in (n, n, n, 1))
    for tensor in (A, B, C, b):
        tensor.requires_grad_(gradient)
    return TanhField(A=torch.eye(n) if diagonal else A, B=B, b=b, C=C if linear else None)


def count(run) -> int:
    counter = OperationCounter()
    with counter:
        run()
    return counter.operations


def moved():
    return torch.cat([X, X.clone()]).T.reshape(-1)[3:].unsqueeze(0)


def made():
    return torch.zeros(9), torch.empty_like(X), torch.full((3,), 2.0)


def convolved():
    return F.conv2d(IMAGE, KERNEL, padding=1)


X, Y = torch.ones(4, 6), torch.ones(6, 5)
IMAGE, KERNEL = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        pytest.param(lambda: X @ Y, 2 * 4 * 6 * 5, id="product"),
        pytest.param(lambda: torch.addmm(torch.ones(4, 1), X, Y), 2 * 4 * 6 * 5, id="product and sum"),
        pytest.param(convolved, 2 * (2 * 4 * 64) * (3 * 9), id="convolution"),
        pytest.param(lambda: torch.tanh(X), 24, id="tanh"),
        pytest.param(lambda: X.clone().mul_(2), 24, id="in place"),
        pytest.param(lambda: X[:, :1] * X, 24, id="broadcast"),
        pytest.param(lambda: X.sum(), 24, id="reduction"),
        pytest.param(moved, 0, id="moved"),
        pytest.param(made, 0, id="made"),
        pytest.param(lambda: None, 0, id="nothing"),
    ],
)
def test_an_operator_counts_once(run, expected):
    assert count(run) == expected


@pytest.mark.parametrize(
    ("method", "kind", "forward", "backward"),
    [
        # A column of a stage: B u + b 18, tanh 3, G t 18; backwards G^T g 18, slope 3, B^T dz 18, and the
        # gradients of A 18, B 18, b 3. Two layers of two steps on five columns: 20 steps.
        ("euler", {}, 20 * 39, 20 * 78),
        ("euler", {"gradient": False}, 20 * 39, 20 * 39),
        # G = h I is a factor a channel: 6.
        ("euler", {"diagonal": True}, 20 * 27, 20 * (6 + 3 + 18 + 18 + 3)),
        # E u and E^T g 18 each, the gradient of C 18; the combination of the second stage 9 either way.
        ("euler", {"linear": True}, 20 * 57, 20 * 114),
        ("heun2", {"linear": True}, 20 * (2 * 57 + 9), 20 * (2 * 114 + 9)),
        ("ssprk3", {}, 20 * (3 * 39 + 2 * 9), 20 * (3 * 78 + 2 * 9)),
    ],
)
def test_tanh_flows_by_hand(method, kind, forward, backward):
    assert tanh_operations([field(**kind)] * 2, M, steps=2, method=method) == (forward, backward)


def canonical(f: TanhField, x, g_out, *, h: float, steps: int, method: str):
    """The folded formulation, forwards and backwards, each product into what it is added to."""
    B, b, G = f.B, f.b, h * f.A
    E = None if f.C is None else torch.eye(len(B)) + h * f.C

    def forwards():
        state, kept = x, []
        for _ in range(steps):
            u = state
            for alpha in SHU_OSHER_ALPHAS[method]:
                t = torch.tanh(torch.addmm(b, B, u))
                kept.append((u, t))
                v = torch.addmm(u if E is None else E @ u, G, t)
                u = v if alpha == 0 else alpha * state + (1 - alpha) * v
            state = u
        return state, kept

    def backwards(kept):
        g, sums = g_out, {"A": [], "B": [], "b": [], "C": []}
        for _ in range(steps):
            held = None
            for alpha in reversed(SHU_OSHER_ALPHAS[method]):
                u, t = kept.pop()
                if alpha > 0:
                    part = alpha * g
                    held = part if held is None else held + part
                    g = (1 - alpha) * g
                dz = torch.ops.aten.tanh_backward(G.T @ g, t)
                sums["A"].append(g @ t.T)
                sums["B"].append(dz @ u.T)
                sums["b"].append(dz.sum(1, keepdim=True))
                if E is not None:
                    sums["C"].append(g @ u.T)
                g = torch.addmm(g if E is None else E.T @ g, B.T, dz)
            g = g if held is None else g + held
        return g, sums

    return forwards, backwards


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("method", list(SHU_OSHER_ALPHAS))
def test_the_closed_form_is_what_the_counter_sees_of_a_formulation_that_is_right(method, linear):
    f, (h, steps) = field(linear), (0.2, 2)
    x, g_out = torch.randn(N, M), torch.randn(N, M)
    state = x.clone().requires_grad_(True)
    expected = shu_osher(f, state, method=method, h=h, steps=steps)
    parameters = {k: v for k, v in vars(f).items() if v is not None}
    gradients = torch.autograd.grad(expected, [state, *parameters.values()], g_out)
    with torch.no_grad():
        forwards, backwards = canonical(f, x, g_out, h=h, steps=steps, method=method)
        with OperationCounter() as forward:
            out, kept = forwards()
        with OperationCounter() as backward:
            g_in, sums = backwards(kept)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(g_in, gradients[0])
    for name, gradient in zip(parameters, gradients[1:], strict=True):
        torch.testing.assert_close(sum(sums[name]) * (h if name in "AC" else 1), gradient)
    assert tanh_operations([f], M, steps=steps, method=method) == (forward.operations, backward.operations)


def flow_of(name: str, **overrides) -> ODEBlock:
    spec = MODELS.get(name)
    return spec.build((1, 8, 8), 10, **spec.resolve(overrides)).flow


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        # n = 8: B 128, tanh 8, G 128 or 16, and for CH-NODE E with two entries a row, 32.
        ("resnet", 4 * (128 + 8 + 16), 4 * (16 + 8 + 128 + 128 + 8)),
        ("node", 8 * (2 * 152 + 24), 8 * (2 * 288 + 24)),
        ("h-node", 8 * (2 * 264 + 24), 8 * (2 * (264 + 264) + 24)),
        ("ch-node", 8 * (2 * 296 + 24), 8 * (2 * (296 + 296) + 24)),
    ],
)
def test_work_of_the_core_models(name, forward, backward):
    """States of 8 channels and 7 columns; 4 layers of K (8, 8) and b (8, 1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = flow_of(name).requires_grad_(False)
    state, weights = torch.randn(8, 7), 4 * 72 * 4
    work = flow_work(flow, state, gradient=False)
    assert (work.operations, work.bytes) == (7 * forward, 2 * 8 * 7 * 4 + weights)
    work = flow_work(flow, state, gradient=True)
    assert (work.operations, work.bytes) == (7 * (forward + backward), 5 * 8 * 7 * 4 + 2 * weights)
    assert not any(p.requires_grad for p in flow.parameters())


def test_a_gamma_that_is_no_parameter_needs_no_gradient_of_its_matrix():
    flow = flow_of("ch-node-euler")
    with torch.no_grad():
        flow.gamma.fill_(2.0)
    stage = 128 + 8 + 128 + 32
    work = flow_work(flow, torch.randn(8, 7), gradient=True)
    assert work.operations == 7 * flow.solver.steps * (stage + stage + (128 + 128 + 8))


class Rectified(nn.Module):
    """f(x) = relu(W x): states no tanh field."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.W = nn.Parameter(0.1 * torch.ones(n, n))

    def forward(self, state):
        return torch.relu(self.W @ state)


def test_another_flow_is_counted_as_it_is_dispatched():
    flow = ODEBlock([Rectified(N), Rectified(N)], final_time=1.0, solver=Solver(method="ssprk3", steps=4))
    state = torch.ones(N, M)
    stage = 2 * N * N * M + N * M + 5 * N * M  # the field, then three factors and two sums in `shu_osher`
    work = flow_work(flow, state, gradient=False)
    assert (work.operations, work.bytes) == (4 * 3 * stage, 4 * (2 * N * M + 2 * N * N))
    both = flow_work(flow, state, gradient=True)
    assert both.bytes == 4 * (5 * N * M + 2 * 2 * N * N)
    products = 4 * 3 * 2 * N * N * M
    assert both.operations >= work.operations + 2 * products
    assert not state.requires_grad
    assert all(p.grad is None for p in flow.parameters())


@pytest.mark.parametrize("name", MODELS.names())
def test_every_registered_flow_can_be_counted(name):
    state = torch.randn(64 if name == "ch-node-lipschitz" else 8, 7)
    forward, both = (flow_work(flow_of(name), state, gradient=gradient) for gradient in (False, True))
    assert 0 < forward.operations < both.operations
    assert 0 < forward.bytes < both.bytes
