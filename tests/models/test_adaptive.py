"""The compiled dopri5 against torchdiffeq: its decisions, and in float64 its values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchdiffeq._impl.rk_common as reference
from robustode.bench.training.provenance import flow_implementations
from robustode.models import ODE_BACKENDS, ODEBlock, Solver, use_ode_backend
from robustode.models.node import TanhLayer
from robustode.models.ode.kernels import dopri5 as _dopri5
from robustode.models.ode.kernels.adaptive import supports_adaptive
from robustode.models.ode.kernels.cpu_tiles import SOURCES, TILE
from robustode.models.ode.kernels.dopri5 import Step, next_size, solve_all
from robustode.models.ode.kernels.tableau import ERROR, MIDDLE, STAGES, interpolant, rows
from robustode.models.ode.solver import SolverFailure
from robustode.models.ode.tanh_field import TanhField
from test_fused import answers, assert_close, build, flow_answers, images, normal
from torch import Tensor, nn
from torchdiffeq._impl import dopri5 as published


class Layer(nn.Module):
    """A tanh(B x + b) + C x."""

    def __init__(self, n: int, gain: float, linear: bool, seed: int) -> None:
        super().__init__()
        drawn = [normal(n, k, seed=seed + i) * gain / n**0.5 for i, k in enumerate((n, n, 1, n))]
        self.A, self.B, self.b, self.C = map(nn.Parameter, drawn)
        self.linear = linear
        if not linear:
            del self.C

    def tanh_field(self) -> TanhField:
        return TanhField(A=self.A, B=self.B, b=self.b, C=self.C if self.linear else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.tanh_field()(x)


def block(
    n: int = 8, *, layers: int = 1, gain: float = 1.0, linear: bool = False, tolerance: float = 1e-3,
    final_time: float = 2.0, seed: int = 0,
) -> ODEBlock:  # fmt: skip
    solver = Solver(method="dopri5", rtol=tolerance, atol=tolerance)
    made = [Layer(n, gain, linear, seed + 10 * i) for i in range(layers)]
    return ODEBlock(made, final_time=final_time, solver=solver)


@pytest.fixture
def taken(monkeypatch) -> list[list[Step]]:
    """The accepted steps of every pass on the compiled path."""
    passes: list[list[Step]] = []

    def spy(*args, **kwargs):
        out, steps = solve_all(*args, **kwargs)
        passes.append(steps)
        return out, steps

    monkeypatch.setattr(_dopri5, "solve_all", spy)
    return passes


@pytest.fixture
def trials(monkeypatch) -> list[tuple[float, float]]:
    """Size and error ratio of every trial of either path."""
    seen: list[tuple[float, float]] = []
    trial, resize = _dopri5._trial, reference._optimal_step_size

    def ours(*args, h, **kwargs):
        ratio, finite = trial(*args, h=h, **kwargs)
        seen.append((h, ratio))
        return ratio, finite

    def theirs(h, ratio, *args):
        seen.append((float(h), float(ratio)))
        return resize(h, ratio, *args)

    monkeypatch.setattr(_dopri5, "_trial", ours)
    monkeypatch.setattr(reference, "_optimal_step_size", theirs)
    return seen


def replayed(monkeypatch, flow: ODEBlock, state: Tensor, sizes, dtype=torch.float64) -> dict[str, Tensor]:
    """What torchdiffeq gives in `dtype` for these trials: a later size is a constant to it in any case."""
    left = list(sizes)

    def resize(*_):
        del left[0]
        return torch.tensor(left[0][0] if left else 1.0, dtype=torch.float64)

    with monkeypatch.context() as patch, use_ode_backend("torchdiffeq"):
        patch.setattr(reference, "_compute_error_ratio", lambda *_: torch.tensor(left[0][1]))
        patch.setattr(reference, "_optimal_step_size", resize)
        exact = flow_answers(flow.to(dtype), state.to(dtype))
    flow.float()
    assert left == []
    return exact


def rounding(monkeypatch, flow: ODEBlock, state: Tensor, found, sizes) -> tuple[float, float]:
    """The largest relative error in float32 on these trials: of what was found, and of torchdiffeq."""
    exact, theirs = (replayed(monkeypatch, flow, state, sizes, t) for t in (torch.float64, torch.float32))

    def error(answers: dict[str, Tensor]) -> float:
        return max(float((answers[k] - v).abs().max() / v.abs().max()) for k, v in exact.items())

    return error(found), error(theirs)


# --- the tableau --------------------------------------------------------------------------------


def test_the_tableau_is_torchdiffeqs():
    theirs = published._DORMAND_PRINCE_SHAMPINE_TABLEAU
    for stage, weights in zip(STAGES[1:], theirs.beta, strict=True):
        np.testing.assert_array_equal(stage[: len(weights)], weights)
        assert not stage[len(weights) :].any()
    np.testing.assert_allclose(ERROR, theirs.c_error, rtol=0, atol=1e-17)
    np.testing.assert_array_equal(MIDDLE / 2, published.DPS_C_MID)


@pytest.mark.parametrize("x", [1e-3, 0.25, 0.5, 0.8, 1.0])
def test_the_interpolant_is_torchdiffeqs(x):
    x = float(np.float32(x))
    generator = torch.Generator().manual_seed(0)
    y0, *k = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    k, h = torch.stack(k), 0.3
    y1, middle = y0 + h * torch.tensor(STAGES[6]) @ k, y0 + h / 2 * torch.tensor(MIDDLE) @ k

    def theirs(x: Tensor) -> Tensor:
        coefficients = reference._interp_fit(y0, y1, middle, k[0], k[6], torch.tensor(h, dtype=torch.float64))
        zero, one = (torch.tensor(float(t), dtype=torch.float64) for t in (0, 1))
        return reference._interp_evaluate(coefficients, zero, one, x)

    along, by_x = interpolant(x)
    at = torch.tensor(x, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(theirs, at)
    torch.testing.assert_close(y0 + h * torch.tensor(along) @ k, theirs(at), rtol=0, atol=1e-13)
    torch.testing.assert_close(h * torch.tensor(by_x) @ k, slope, rtol=0, atol=1e-13)


def test_the_interpolant_ends_at_the_next_state_and_needs_no_second_stage():
    np.testing.assert_allclose(interpolant(1.0)[0], STAGES[6], rtol=0, atol=1e-14)
    assert interpolant(0.3)[0][1] == 0


def test_rows_hold_what_is_not_zero():
    index, value, count = rows(STAGES)
    for line, i, v, found in zip(STAGES, index, value, count, strict=True):
        again = np.zeros(7)
        np.add.at(again, i, v.astype(float))
        np.testing.assert_allclose(again, line, rtol=1e-6)
        assert found == np.count_nonzero(line)


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 1e-5, 0.3, 0.9999, 1.0, 1.5, 400.0, 1e9, np.inf, np.nan])
def test_sizes_follow_torchdiffeqs_rule(ratio):
    h, *rest = (torch.tensor(v, dtype=torch.float64) for v in (0.37, 0.9, 10.0, 0.2))
    theirs = reference._optimal_step_size(h, torch.tensor(ratio, dtype=torch.float32), *rest, 5)
    assert next_size(0.37, float(np.float32(ratio))) == pytest.approx(float(theirs), rel=1e-14, nan_ok=True)


# --- values, gradients, counts ------------------------------------------------------------------

CASES = [
    *({"layers": layers, "gain": gain, "tolerance": tolerance}
      for layers in (1, 4) for gain in (0.5, 1.0, 1.5) for tolerance in (1e-3, 1e-5)),
    {"layers": 2, "gain": 1.5, "linear": True},
    {"gain": 3.0, "linear": True, "tolerance": 1e-5, "seed": 1000},  # with rejections, as the next
    {"n": 2, "gain": 12.0, "linear": True, "tolerance": 1e-5, "final_time": 1.0},
    {"n": 1}, {"n": 3, "linear": True}, {"n": 10, "layers": 2}, {"n": 16, "gain": 2.0},
    {"gain": 0.01, "tolerance": 0.3, "final_time": 0.01},
]  # fmt: skip

CHAOTIC = [{"gain": 4.0}, {"gain": 2.5, "tolerance": 0.3}, {"layers": 4, "gain": 2.5}]


@pytest.mark.parametrize("columns", [1, 64, TILE + 300])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(f"{k}={v}" for k, v in case.items()))
def test_steps_and_gradients_are_torchdiffeqs_in_float64(monkeypatch, taken, trials, case, columns):
    flow, state = block(**case), normal(case.get("n", 8), columns, seed=3)
    found, sizes, nfe = flow_answers(flow, state), list(trials), flow.nfe
    layers = case.get("layers", 1)
    assert len(taken) == 1
    assert nfe == 2 * layers + 6 * len(sizes)
    exact = replayed(monkeypatch, flow, state, sizes)
    assert flow.nfe == nfe
    for name, wanted in exact.items():
        assert_close(found[name], wanted, name)


@pytest.mark.parametrize("case", CHAOTIC)
def test_where_rounding_grows_it_grows_no_more_than_torchdiffeqs(monkeypatch, taken, trials, case):
    errors = []
    for seed in range(15):
        trials.clear()
        flow, state = block(**case, seed=1000 * seed), normal(8, 10, seed=seed)
        found, sizes = flow_answers(flow, state), list(trials)
        errors.append(rounding(monkeypatch, flow, state, found, sizes))
    assert len(taken) == 15
    ours, theirs = np.median(errors, axis=0)
    assert ours <= 2 * theirs


def test_the_cases_have_rejections_and_every_kind_of_step(taken, trials):
    kinds = set()
    for case in CASES:
        trials.clear()
        flow_answers(block(**case), normal(case.get("n", 8), 64, seed=3))
        for step in taken[-1]:
            kinds.add((step.size is not None, step.end is not None, step.size_gradient))
        kinds.add("rejected" if any(ratio > 1 for _, ratio in trials) else "all accepted")
    first = {(True, False, True), (True, True, True)}
    assert kinds >= {*first, (False, False, False), (False, True, True), "rejected", "all accepted"}


@pytest.mark.parametrize(
    "overrides", [{}, {"layers": 1}, {"layers": 2, "gain": 0.5}, {"rtol": 0.1, "atol": 0.1}]
)
@pytest.mark.parametrize("count", [1, 9])
def test_a_model_gives_what_torchdiffeq_gives_in_float32(monkeypatch, ode_backend, taken, overrides, count):
    """Where the error of the first step is far below the tolerance, no size hangs on its rounding."""
    monkeypatch.setattr("test_fused.images", lambda: images(count))
    model = build("node-dopri5", **overrides)
    found, nfe = answers(model), model.flow.nfe
    ode_backend("torchdiffeq")
    wanted = answers(model)
    assert len(taken) == 1
    assert model.flow.nfe == nfe
    for name, value in wanted.items():
        assert_close(found[name], value, name)


@pytest.mark.parametrize("case", [{"gain": 3.0}, {"gain": 8.0}, {"layers": 3, "gain": 2.0}])
def test_torchdiffeq_takes_the_same_trials(ode_backend, trials, case):
    flow, state = block(**case, tolerance=1e-2), normal(8, 300, seed=3)
    with torch.no_grad():
        flow(state)
        ours, nfe = list(trials), flow.nfe
        trials.clear()
        ode_backend("torchdiffeq")
        flow(state)
    assert flow.nfe == nfe
    np.testing.assert_allclose(ours, trials, rtol=5e-3)
    assert [ratio <= 1 for _, ratio in ours] == [ratio <= 1 for _, ratio in trials]


def test_a_first_step_may_be_rejected(monkeypatch, trials, taken):
    flow = block(tolerance=1e-3, final_time=0.05)
    with torch.no_grad():  # stiff, and nearly at rest where it starts
        flow.layers[0].A[:] = torch.eye(8)
        flow.layers[0].B[:] = -100 * torch.eye(8)
        flow.layers[0].b.fill_(10.0)
    state = 0.1 + 0.001 * normal(8, 64, seed=3)
    found, sizes = flow_answers(flow, state), list(trials)
    assert sizes[0][1] > 1
    assert not any(step.size_gradient for step in taken[0])
    ours, theirs = rounding(monkeypatch, flow, state, found, sizes)
    assert ours <= max(1e-5, 4 * theirs)


def test_a_batch_is_solved_as_one(taken):
    flow, state = block(gain=1.5), normal(8, 40, seed=3)
    flow.requires_grad_(False)
    together, alone = flow(state), torch.cat([flow(half) for half in state.chunk(2, dim=1)], dim=1)
    assert len(taken) == 3
    assert 1e-5 < float((together - alone).abs().max()) < 0.1


@pytest.mark.parametrize("wanted", ["A", "B", "b", "C", None])
def test_each_tensor_alone_can_ask_for_its_gradient(taken, wanted):
    flow, state = block(linear=True, gain=1.5), normal(8, 300, seed=3)
    every = flow_answers(flow, state)
    flow.requires_grad_(False)
    x = state.clone().requires_grad_(wanted is None)
    parameter = x if wanted is None else getattr(flow.layers[0], wanted).requires_grad_(True)
    out = flow(x)
    (found,) = torch.autograd.grad((out * normal(*out.shape, seed=2)).sum(), parameter)
    assert torch.equal(found, every["input" if wanted is None else f"layers.0.{wanted}"])


def test_the_number_of_threads_changes_at_most_the_order_of_sums():
    flow, state = block(gain=2.0, layers=2), normal(8, 1500, seed=3)
    try:
        one = flow_answers(flow, state)
        torch.set_num_threads(2)
        two = flow_answers(flow, state)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one["state"], two["state"])
    for name, value in one.items():
        assert_close(two[name], value, name)


def test_a_state_that_is_not_contiguous_is_read_right_and_left_alone():
    flow, state = block(3), normal(40, 6)
    view, before = state.T[::2], state.clone()
    assert torch.equal(flow(view), flow(view.contiguous()))
    assert torch.equal(state, before)


def test_a_state_changed_in_between_is_noticed():
    flow, state = block(), normal(8, 4)
    out = flow(state)
    state.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_nothing_is_kept_where_no_gradient_can_be_asked_for(taken):
    flow, state = block(layers=2), normal(8, 4)
    with torch.no_grad():
        free = flow(state)
    assert torch.equal(free, flow(state).detach())
    assert [bool(steps) for steps in taken] == [False, True]


def test_a_graph_that_is_kept_gives_its_gradient_again():
    flow, state = block(), normal(8, 4).requires_grad_(True)
    loss = flow(state).square().sum()
    first, second = (torch.autograd.grad(loss, state, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_there_is_no_second_derivative_and_none_is_made_up():
    state = normal(8, 4).requires_grad_(True)
    loss = block()(state).square().sum()
    with pytest.raises(RuntimeError, match=r"no second derivative: use robustode\.use_ode_backend"):
        torch.autograd.grad(loss, state, create_graph=True)


# --- failure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", ODE_BACKENDS)
def test_a_state_that_is_not_finite_fails_on_either_path(ode_backend, taken, value, backend):
    ode_backend(backend)
    flow, state = block(), normal(8, 600)
    state[3, 500] = value
    why = r"dopri5 failed: (underflow in dt 0\.0|non-finite values in state)"
    with pytest.raises(SolverFailure, match=why):
        flow(state)
    assert flow.nfe == 2
    assert taken == []


@pytest.mark.parametrize("backend", ODE_BACKENDS)
def test_an_overflow_on_the_way_fails_on_either_path(ode_backend, backend):
    ode_backend(backend)
    flow, state = block(2, linear=True, final_time=200.0), normal(2, 4)
    with torch.no_grad():
        flow.layers[0].C[:] = torch.eye(2)
    with pytest.raises(SolverFailure, match=r"dopri5 failed: (underflow in dt|non-finite values in state)"):
        flow(state)


@pytest.mark.parametrize("backend", ODE_BACKENDS)
def test_no_columns_fail_on_either_path(ode_backend, backend):
    ode_backend(backend)
    with pytest.raises(SolverFailure, match="underflow in dt"):
        block()(torch.zeros(8, 0))


@pytest.mark.parametrize("backend", ODE_BACKENDS)
def test_a_field_that_is_zero_everywhere_keeps_the_state(ode_backend, backend):
    ode_backend(backend)
    flow, state = block(), normal(8, 5).requires_grad_(True)
    with torch.no_grad():
        flow.layers[0].A.zero_()
    out = flow(state)
    assert torch.equal(out, state)
    assert torch.equal(torch.autograd.grad(out.sum(), state)[0], torch.ones(8, 5))


# --- where it is taken --------------------------------------------------------------------------


def test_the_implementation_is_named(ode_backend):
    model = build("node-dopri5")
    assert flow_implementations(model, torch.device("cpu")) == "numba"
    assert flow_implementations(model, torch.device("cuda")) == "eager"
    ode_backend("torchdiffeq")
    assert flow_implementations(model, torch.device("cpu")) == "eager"


@pytest.mark.parametrize("method", ["dopri8", "bosh3", "adaptive_heun"])
def test_other_adaptive_methods_go_step_by_step(taken, method):
    model = build("node-dopri5", method=method)
    assert bool(model(images()).isfinite().all())
    assert model.flow.implementation(torch.device("cpu")) == "eager"
    assert taken == []


def test_double_precision_goes_step_by_step(taken):
    assert build("node-dopri5").double()(images().double()).dtype == torch.float64
    assert taken == []


def test_other_states_go_step_by_step(taken):
    flow = block()
    assert not supports_adaptive(normal(8), "dopri5")
    assert not supports_adaptive(normal(17, 4), "dopri5")
    assert not supports_adaptive(torch.empty(8, 4, device="meta"), "dopri5")
    assert not supports_adaptive(normal(8, 4), "heun2")
    assert supports_adaptive(normal(8, 4), "dopri5")
    handle = flow.layers[0].register_forward_hook(lambda *_: None)
    flow(normal(8, 4))
    handle.remove()
    assert taken == []


def test_what_counts_operations_sees_them(taken):
    from robustode.bench.throughput.flop_count import OperationCounter

    counter, flow = OperationCounter(), block()
    with counter:
        flow(normal(8, 4))
    assert counter.operations > flow.nfe * 2 * 8 * 8 * 4
    assert taken == []


def test_a_doubled_layer_is_not_taken_at_its_parents_word(taken):
    class Doubled(TanhLayer):
        def forward(self, state: Tensor) -> Tensor:
            return 2 * super().forward(state)

    ODEBlock([Doubled(3)], final_time=0.5, solver=Solver(method="dopri5"))(normal(3, 4))
    assert taken == []


def test_the_package_imports_without_numba():
    code = "import sys, robustode.models; assert 'numba' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_compiled_loops_are_stored_under_the_state_of_every_file_they_come_from():
    """Those that others call, too: numba would take them as they were when `rational_tanh` was another."""
    from robustode.models.ode.kernels import cpu_loops, cpu_tiles, dopri5_loops, initial_step_loops

    found = 0
    for module in (cpu_tiles, cpu_loops, dopri5_loops, initial_step_loops):
        for kernel in vars(module).values():
            file = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
            if file is not None:
                assert len(file._source_stamp) == len(SOURCES), kernel
                found += 1
    assert found > 15
    tanh = cpu_tiles.tanh
    tanh(np.zeros((1, 4), np.float32), 4)
    file = tanh._cache._cache_file
    assert file._load_index(), "the stamp that was saved is the one that is compared"
    kept = file._source_stamp
    rational = SOURCES.index("rational_tanh.py")
    file._source_stamp = [(0.0, 1) if i == rational else stamp for i, stamp in enumerate(kept)]
    try:
        assert not file._load_index(), "of an edited rational_tanh nothing is taken"
    finally:
        file._source_stamp = kept
