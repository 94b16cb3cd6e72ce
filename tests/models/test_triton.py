"""The GPU's path of tanh flows against step-by-step ones in float64.

Without a CUDA device the kernels run in Triton's interpreter, see conftest.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from robustode.models.ode.kernels import fixed_step as _fused
from robustode.models.ode.kernels.fixed_step import (
    check_kernels,
    fixed_step_flow,
    flow_implementation,
    supports,
)
from robustode.models.ode.solver import SHU_OSHER_ALPHAS, shu_osher
from robustode.models.ode.tanh_field import TanhField
from test_fused import FAST, assert_close, build, fields, flow_answers, gradients, leaves, normal, tanh
from torch import Tensor

pytest.importorskip("triton")
from robustode.models.ode.kernels import gpu as _triton

BLOCK = _triton.BLOCK
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def passes(monkeypatch) -> list[str]:
    """Grows by the name of each pass that Triton carries: all that are made."""
    calls: list[str] = []

    def spy(name: str):
        def call(*args, **kwargs):
            calls.append(name)
            return getattr(_triton, name)(*args, **kwargs)

        return call

    backend = SimpleNamespace(forward=spy("forward"), backward=spy("backward"))
    monkeypatch.setattr(_fused, "_kernels", lambda device: backend)
    return calls


def on_device(tensors: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[t.detach().to(DEVICE).requires_grad_(True) for t in layer] for layer in tensors]


# --- the models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides"), [*((name, {}) for name in FAST), ("node", {"method": "ssprk3", "steps": 12})]
)
def test_the_models_flows_are_those_of_float64(name, overrides, passes):
    flow = build(name, **overrides).flow.to(DEVICE)
    state = normal(len(flow.tanh_fields()[0].B), 9).to(DEVICE)
    found = flow_answers(flow, state)
    assert passes == ["forward", "backward"]
    for key, wanted in flow_answers(flow.double(), state.double()).items():
        assert_close(found[key], wanted, key)
    assert passes == ["forward", "backward"]


# --- fields -------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("method", sorted(SHU_OSHER_ALPHAS))
@pytest.mark.parametrize(("n", "columns"), [(2, 1), (3, BLOCK - 1), (4, BLOCK), (8, BLOCK + 1), (16, 3)])
def test_any_field_is_carried_as_in_float64(n, columns, method, linear):
    h, steps = 0.3, 2 if method == "heun2" else 1
    ours = on_device(leaves(n, n, 2, linear))
    theirs = [[t.detach().double().requires_grad_(True) for t in layer] for layer in ours]
    state = normal(n, columns, seed=7).to(DEVICE).requires_grad_(True)
    exact_state = state.detach().double().requires_grad_(True)
    exact = exact_state
    for field in fields(theirs):
        exact = shu_osher(field, exact, method=method, h=h, steps=steps)
    out = fixed_step_flow(state, fields(ours), h=h, steps=steps, method=method)
    assert_close(out.detach(), exact.detach(), "state")
    wanted = gradients(exact, exact_state, theirs)
    for i, (found, right) in enumerate(zip(gradients(out, state, ours), wanted, strict=True)):
        assert_close(found, right, f"gradient {i}", least=1.0)


@pytest.mark.parametrize("linear", [False, True])
def test_without_parameter_gradients_there_are_no_sums_and_the_input_gradient_is_the_same(linear):
    settings = {"linear": linear, "alphas": SHU_OSHER_ALPHAS["ssprk3"], "steps": 1}
    state, g = (normal(5, 9, seed=seed).to(DEVICE) for seed in (0, 1))
    shapes = [(2, 5, 5), (2, 5), (2, 5, 5), (2, 5, 5)]
    matrices = [normal(*shape, seed=2 + i).to(DEVICE) / 3 for i, shape in enumerate(shapes)]
    out, kept = _triton.forward(state, matrices, **settings, save=True)
    alone, nothing = _triton.forward(state, matrices, **settings, save=False)
    assert kept.shape == (2, *state.shape)
    assert nothing is None
    assert_close(alone, out)
    with_sums, sums = _triton.backward(g, kept, matrices, **settings, needs_grad=(True,) * 4)
    g_in, none = _triton.backward(g, kept, matrices, **settings, needs_grad=(False,) * 4)
    assert none is None
    assert (sums[3] is not None) == linear
    assert_close(g_in, with_sums)


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch):
    kept = []
    backend = SimpleNamespace(
        forward=lambda state, matrices, *, save, **settings: (kept.append(save), (state.clone(), None))[1]
    )
    monkeypatch.setattr(_fused, "_kernels", lambda device: backend)
    layer = fields(leaves(0, 3, 1, True))
    frozen = [TanhField(A=f.A.detach(), B=f.B.detach(), b=f.b.detach()) for f in layer]
    state = normal(3, 4)
    fixed_step_flow(state, layer, h=0.1, steps=1, method="euler")
    fixed_step_flow(state, frozen, h=0.1, steps=1, method="euler")
    with torch.no_grad():
        fixed_step_flow(state.clone().requires_grad_(True), layer, h=0.1, steps=1, method="euler")
    assert kept == [True, False, False]


@pytest.mark.parametrize("linear", [False, True])
def test_programs_that_take_several_blocks_change_no_more_than_rounding(monkeypatch, linear):
    def run(programs: int) -> tuple[Tensor, list[Tensor]]:
        monkeypatch.setattr(_triton, "PROGRAMS", programs)
        tensors = on_device(leaves(3, 3, 2, linear))
        state = normal(3, 4 * BLOCK + 5).to(DEVICE).requires_grad_(True)
        out = fixed_step_flow(state, fields(tensors), h=0.2, steps=2, method="euler")
        first, *rest = gradients(out, state, tensors)
        return first, rest

    (one, sums_one), (two, sums_two) = run(1000), run(2)  # of 5 blocks: 1 and 2 after each other
    assert torch.equal(one, two)
    for found, wanted in zip(sums_two, sums_one, strict=True):
        assert_close(found, wanted)


def test_two_calls_give_the_same_bits():
    def run() -> list[Tensor]:
        tensors = on_device(leaves(1, 8, 2, True))
        state = normal(8, BLOCK + 1).to(DEVICE).requires_grad_(True)
        out = fixed_step_flow(state, fields(tensors), h=0.2, steps=1, method="heun2")
        return [out.detach(), *gradients(out, state, tensors)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_a_state_that_is_not_contiguous_is_read_right_and_left_alone():
    state, field = normal(40, 6).to(DEVICE), fields(on_device(leaves(0, 3, 1, True)))
    view, before = state.T[::2].requires_grad_(True), state.clone()
    found, wanted = (
        fixed_step_flow(x, field, h=0.2, steps=2, method="heun2") for x in (view, view.contiguous())
    )
    assert torch.equal(found, wanted)
    gradients = [torch.autograd.grad(out.sum(), view)[0] for out in (found, wanted)]  # g_out is expanded
    assert torch.equal(*gradients)
    assert torch.equal(state, before)


def test_no_columns_give_none_and_gradients_of_zero(passes):
    tensors, state = on_device(leaves(0, 3, 2, True)), torch.zeros(3, 0, device=DEVICE, requires_grad=True)
    out = fixed_step_flow(state, fields(tensors), h=0.2, steps=2, method="heun2")
    first, *rest = gradients(out, state, tensors)
    assert out.shape == first.shape == (3, 0)
    assert not any(gradient.any() for gradient in rest)
    assert passes == ["forward", "backward"]


# --- NaN, infinity, saturation ------------------------------------------------------------------


@pytest.mark.parametrize(("n", "method"), [(3, "euler"), (3, "heun2"), (4, "ssprk3")])
def test_nan_stays_in_its_column(n, method):
    def run(state: Tensor) -> tuple[Tensor, Tensor]:
        state.requires_grad_(True)
        out = fixed_step_flow(state, fields(on_device(leaves(0, n, 1, True))), h=0.2, steps=1, method=method)
        return out.detach(), torch.autograd.grad(out.sum(), state)[0]

    state, column = normal(n, BLOCK + 3).to(DEVICE), BLOCK
    sick = state.clone()
    sick[1, column] = torch.nan
    others = torch.arange(BLOCK + 3, device=DEVICE) != column
    for healthy, ill in zip(run(state), run(sick), strict=True):
        assert bool(ill[:, column].isnan().all())
        assert torch.equal(ill[:, others], healthy[:, others])


@pytest.mark.parametrize("n", [1, 3, 4])
def test_an_infinite_state_saturates_as_in_eager_mode(n):
    field = TanhField(A=-torch.ones(n, n), B=torch.ones(n, n), b=torch.ones(n, 1), C=torch.ones(n, n))
    field = TanhField(**{name: getattr(field, name).to(DEVICE) for name in "ABbC"})
    state = torch.zeros(n, 2, device=DEVICE)
    state[0] = torch.tensor([-torch.inf, torch.inf])
    with np.errstate(invalid="ignore"):  # the interpreter's numpy meets 0 times infinity, as eager mode does
        found = fixed_step_flow(state, [field], h=0.5, steps=1, method="euler")
    wanted = state + 0.5 * field(state)
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("scale", [18.0, 1e4, 3e38])
def test_a_saturated_tanh_is_exactly_one(scale):
    one = torch.ones(1, 1, device=DEVICE)
    state = torch.tensor([[-1.0, -0.5, 0.5, 1.0]], device=DEVICE, requires_grad=True)
    field = TanhField(A=one, B=scale * one, b=0 * one)
    out = fixed_step_flow(state, [field], h=1.0, steps=1, method="euler")
    assert torch.equal(out, state + state.sign())
    (gradient,) = torch.autograd.grad(out.sum(), state)
    assert torch.equal(gradient, torch.ones_like(state))


def test_tanh_is_right_to_six_digits_relative_to_it_odd_and_never_beyond_one(monkeypatch):
    monkeypatch.setattr(_triton, "BLOCK", 4096)
    z = torch.cat([torch.linspace(0, 20, 6001), torch.logspace(-30, -2, 1000)]).to(DEVICE)
    found, exact = tanh(z), torch.tanh(z.double())
    assert bool(((found - exact).abs() <= 1e-6 * exact).all())
    assert torch.equal(tanh(-z), -found)
    assert float(found.max()) == 1


# --- when it is taken ---------------------------------------------------------------------------


def test_a_gpu_takes_it_where_triton_runs(monkeypatch, ode_backend):
    def on_gpu(n: int, method: str = "heun2", **changes) -> bool:
        state = {"ndim": 2, "dtype": torch.float32, "device": torch.device("cuda"), "shape": (n, 5)}
        return supports(SimpleNamespace(**(state | changes)), method)

    monkeypatch.setattr(_fused, "_triton_runs", lambda device: True)
    assert flow_implementation(torch.device("cuda")) == "triton"
    assert on_gpu(1)
    assert on_gpu(16)
    assert not on_gpu(17)
    assert not on_gpu(8, "rk4")
    assert not on_gpu(8, dtype=torch.float64)
    assert not supports(torch.zeros(17, 3), "heun2"), "on a CPU a wider state is left to BLAS"
    assert supports(torch.zeros(16, 3), "heun2")
    ode_backend("torchdiffeq")
    assert flow_implementation(torch.device("cuda")) == "eager"
    assert not on_gpu(8)
    ode_backend("compiled")
    monkeypatch.setattr(_fused, "_triton_runs", lambda device: False)
    assert flow_implementation(torch.device("cuda")) == "eager"
    assert not on_gpu(8)
    assert flow_implementation(torch.device("meta")) == "eager"


def test_without_triton_a_gpu_goes_step_by_step(monkeypatch):
    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr(_fused, "_module", missing)
    assert not _fused._triton_runs.__wrapped__(torch.device("cuda"))


def test_a_gpu_that_triton_cannot_serve_goes_step_by_step_and_says_so(monkeypatch):
    _fused.check_kernels(_triton, DEVICE)

    def refuses(*args, **kwargs):
        raise RuntimeError("no C compiler found\nand more")

    runs = _fused._triton_runs.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_fused, "check_kernels", lambda backend, _: check_kernels(backend, DEVICE))
    monkeypatch.setattr(_fused, "_module", lambda name: SimpleNamespace(forward=refuses))
    with pytest.warns(
        UserWarning, match=r"torchdiffeq solves the flows on cuda: .* \(no C compiler found\)$"
    ):
        assert not runs(torch.device("cuda"))
    wrong = SimpleNamespace(forward=lambda x, *a, **k: (x, x), backward=lambda g, *a, **k: (2 * g, None))
    monkeypatch.setattr(_fused, "_module", lambda name: wrong)
    with pytest.warns(UserWarning, match="wrong result"):
        assert not runs(torch.device("cuda"))
    monkeypatch.setattr(_fused, "_module", lambda name: _triton)
    assert runs(torch.device("cuda"))


COMPILE = """
import sys
import robustode.models

assert not {"triton", "numba"} & set(sys.modules), "they are imported at the first pass"

import triton
from robustode.models.ode.kernels import gpu, gpu_loops as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for kernel, flag in (("forward", {"SAVE": True}), ("backward", {"SUMS": 3})):
    function = getattr(kernels, kernel)
    constants = {**gpu._constants(8, True, (0.0, 0.5)), **flag}
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    types = {
        name: "constexpr" if name in constants else "*fp32" if name.endswith("_at") else "i32"
        for name in function.arg_names
    }
    source = ASTSource(function, types, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "tanh.approx" not in compiled.asm["ptx"] and "tf32" not in compiled.asm["ptx"]
    print(kernel, len(compiled.asm["cubin"]))
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    triton = pytest.importorskip("triton", minversion="3.2")  # the first with this way to state types
    if "nvidia" not in triton.backends.backends:
        pytest.skip("triton was built without NVIDIA's compiler")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 2
