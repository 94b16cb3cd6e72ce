"""The compiled path of tanh flows against the step-by-step one and against textbook loops in float64."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robustode._errors import UnknownName
from robustode.models import (
    MODELS,
    ODEBlock,
    Solver,
    get_ode_backend,
    set_ode_backend,
    use_ode_backend,
)
from robustode.models.node import TanhLayer
from robustode.models.ode import solved_flow as ode
from robustode.models.ode.backend import ENVIRONMENT_VARIABLE, _initial_backend
from robustode.models.ode.kernels import fixed_step
from robustode.models.ode.kernels.cpu import matrix_operand, run_on_threads
from robustode.models.ode.kernels.cpu_tiles import TILE
from robustode.models.ode.kernels.fixed_step import fixed_step_flow, supports
from robustode.models.ode.solver import SHU_OSHER_ALPHAS
from robustode.models.ode.statement import statement_of
from robustode.models.ode.tanh_field import TanhField
from torch import Tensor, nn

SHAPE = (1, 8, 8)


def build(name: str, **overrides) -> nn.Module:
    spec = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spec.build(SHAPE, 10, **spec.resolve(overrides)).eval()


def fast(name: str) -> bool:
    flow = getattr(build(name), "flow", None)
    return isinstance(flow, ODEBlock) and flow.has_tanh_fields() and flow.solver.method in SHU_OSHER_ALPHAS


FAST = [name for name in MODELS.names() if fast(name)]
CASES = [
    *((name, {}) for name in FAST),
    ("node", {"method": "ssprk3", "steps": 12}),
    ("h-node", {"method": "euler", "offset": 1.0}),
    ("ch-node", {"method": "ssprk3", "steps": "contractive"}),
]


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(count: int = 9) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """Grows by one whenever the compiled path is taken."""
    calls: list[int] = []

    def spy(*args, **kwargs):
        calls.append(1)
        return fixed_step_flow(*args, **kwargs)

    monkeypatch.setattr(ode, "fixed_step_flow", spy)
    return calls


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def answers(model: nn.Module, parameters: bool = True) -> dict[str, Tensor]:
    """Logits, and the gradients of a weighted sum of them, by name."""
    x = images().requires_grad_(True)
    logits = model(x)
    wanted = {"input": x, **(dict(model.named_parameters()) if parameters else {})}
    gradients = torch.autograd.grad((logits * normal(*logits.shape)).sum(), list(wanted.values()))
    return {"logits": logits.detach(), **dict(zip(wanted, gradients, strict=True))}


def flow_answers(flow: ODEBlock, state: Tensor) -> dict[str, Tensor]:
    """The state after `flow`, and the gradients of a weighted sum of it, by name."""
    x = state.clone().requires_grad_(True)
    out = flow(x)
    wanted = {"input": x, **dict(flow.named_parameters())}
    weights = normal(*out.shape, seed=2).to(out)
    gradients = torch.autograd.grad((out * weights).sum(), list(wanted.values()))
    return {"state": out.detach(), **dict(zip(wanted, gradients, strict=True))}


def assert_close(found: Tensor, wanted: Tensor, name: str = "", least: float = 0.0) -> None:
    scale = max(float(wanted.abs().max()), least)
    assert float((found.double() - wanted.double()).abs().max()) <= 1e-5 * scale, name


# --- the models ---------------------------------------------------------------------------------


def test_the_core_models_take_the_fast_path():
    assert {"resnet", "node", "h-node", "ch-node", "ch-node-euler"} <= set(FAST)


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_logits_gradients_and_counts_are_those_of_the_reference(name, overrides, ode_backend, used):
    model = build(name, **overrides)
    ode_backend("torchdiffeq")
    reference, nfe = answers(model), model.flow.nfe
    assert used == []
    ode_backend("compiled")
    found = answers(model)
    assert used == [1]
    assert model.flow.nfe == nfe > 0
    for key, wanted in reference.items():
        assert_close(found[key], wanted, key)


def test_without_parameter_gradients_the_input_gradient_is_the_same(used):
    model = build("ch-node")
    wanted = answers(model)["input"]
    model.requires_grad_(False)
    torch.testing.assert_close(answers(model, parameters=False)["input"], wanted, rtol=0, atol=0)
    assert used == [1, 1]


def test_there_is_no_second_derivative_and_none_is_made_up(used):
    x = images().requires_grad_(True)
    loss = build("node")(x).square().sum()
    with pytest.raises(RuntimeError, match=r"no second derivative: use robustode\.use_ode_backend"):
        torch.autograd.grad(loss, x, create_graph=True)
    assert used == [1]


def test_the_reference_has_second_derivatives(ode_backend, used):
    ode_backend("torchdiffeq")
    x = images().requires_grad_(True)
    (gradient,) = torch.autograd.grad(build("node")(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert bool(second.any())
    assert used == []


def test_no_images_give_no_logits_and_no_gradient(used):
    x = torch.rand(0, *SHAPE, requires_grad=True)
    model = build("h-node")
    logits = model(x)
    logits.sum().backward()
    assert logits.shape == (0, 10)
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in model.parameters())
    assert used == [1]


# --- fields, against loops in float64 -----------------------------------------------------------


def textbook_step(f, x: Tensor, h: float, method: str) -> Tensor:
    k1 = f(x)
    if method == "euler":
        return x + h * k1
    k2 = f(x + h * k1)
    if method == "heun2":
        return x + h / 2 * (k1 + k2)
    return x + h / 6 * (k1 + k2 + 4 * f(x + h / 4 * (k1 + k2)))


def leaves(seed: int, n: int, layers: int, linear: bool, dtype=torch.float32) -> list[list[Tensor]]:
    """A, B, b and perhaps C of each layer: the same numbers in either precision."""
    shapes = [(n, n), (n, n), (n, 1), *([(n, n)] if linear else [])]
    drawn = [[normal(*s, seed=seed + 10 * i + j) for j, s in enumerate(shapes)] for i in range(layers)]
    return [[(t / n**0.5).to(dtype).requires_grad_(True) for t in layer] for layer in drawn]


def gradients(out: Tensor, state: Tensor, tensors: list[list[Tensor]]) -> list[Tensor]:
    weights = normal(*out.shape, seed=99).to(out)
    return list(torch.autograd.grad((out * weights).sum(), [state, *(t for layer in tensors for t in layer)]))


def fields(tensors: list[list[Tensor]]) -> list[TanhField]:
    return [TanhField(**dict(zip("ABbC", layer, strict=False))) for layer in tensors]


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**20),
    n=st.sampled_from([1, 2, 3, 5, 8, 10]),
    columns=st.sampled_from([1, 7, TILE - 1, TILE, TILE + 1, 1500]),
    method=st.sampled_from(sorted(SHU_OSHER_ALPHAS)),
    linear=st.booleans(),
    layers=st.integers(1, 3),
    steps=st.integers(1, 3),
)
def test_any_field_is_carried_as_by_a_loop_in_float64(seed, n, columns, method, linear, layers, steps):
    h = 0.3
    ours, theirs = (leaves(seed, n, layers, linear, dtype) for dtype in (torch.float32, torch.float64))
    state = normal(n, columns, seed=seed + 7).requires_grad_(True)
    exact_state = state.detach().double().requires_grad_(True)
    exact = exact_state
    for A, B, b, *C in theirs:
        for _ in range(steps):
            exact = textbook_step(
                lambda x, A=A, B=B, b=b, C=C: A @ torch.tanh(B @ x + b) + (C[0] @ x if C else 0),
                exact,
                h,
                method,
            )
    out = fixed_step_flow(state, fields(ours), h=h, steps=steps, method=method)
    assert_close(out.detach(), exact.detach(), "state")
    wanted = gradients(exact, exact_state, theirs)
    for i, (found, right) in enumerate(zip(gradients(out, state, ours), wanted, strict=True)):
        assert_close(found, right, f"gradient {i}", least=1.0)


@pytest.mark.parametrize("order", [1, -1])
def test_layers_with_and_without_a_linear_part_may_be_mixed(order):
    plain, linear = fields([*leaves(0, 2, 1, False), *leaves(1, 2, 1, True)])
    state = normal(2, 5)
    wanted = state
    for field in (plain, linear)[::order]:
        wanted = wanted + 0.5 * field(wanted)
    found = fixed_step_flow(state, (plain, linear)[::order], h=0.5, steps=1, method="euler")
    assert_close(found.detach(), wanted.detach())


def test_a_state_that_is_not_contiguous_is_read_right_and_left_alone():
    state, field = normal(40, 6), fields(leaves(0, 3, 1, True))
    view = state.T[::2]
    before = state.clone()
    found = fixed_step_flow(view, field, h=0.2, steps=2, method="heun2")
    assert torch.equal(found, fixed_step_flow(view.contiguous(), field, h=0.2, steps=2, method="heun2"))
    assert torch.equal(state, before)


# --- threads ------------------------------------------------------------------------------------


@given(columns=st.integers(0, 5 * TILE + 3), count=st.integers(1, 5))
def test_threads_share_the_columns_at_whole_tiles(columns, count):
    torch.set_num_threads(count)
    try:
        parts = run_on_threads(lambda low, high: (low, high), np.empty((1, columns), np.float32))
    finally:
        torch.set_num_threads(1)
    tiles = -(-columns // TILE)
    assert len(parts) == max(1, min(count, tiles))
    cuts = [0, *(high for _, high in parts)]
    assert cuts == [*(low for low, _ in parts), columns]
    assert all(cut % TILE == 0 for cut in cuts[:-1])
    assert max(high - low for low, high in parts) <= -(-tiles // len(parts)) * TILE


@pytest.mark.parametrize("method", sorted(SHU_OSHER_ALPHAS))
def test_the_number_of_threads_changes_at_most_the_order_of_sums(threads, method):
    def run(count: int) -> tuple[Tensor, list[Tensor]]:
        threads(count)
        tensors = leaves(3, 5, 2, True)
        state = normal(5, 1500).requires_grad_(True)
        out = fixed_step_flow(state, fields(tensors), h=0.2, steps=2, method=method)
        return out.detach(), gradients(out, state, tensors)

    (one, (input_one, *rest_one)), (two, (input_two, *rest_two)) = run(1), run(2)
    assert torch.equal(one, two)
    assert torch.equal(input_one, input_two)
    for a, b in zip(rest_one, rest_two, strict=True):  # sums over the columns, in another order
        assert_close(b, a)


# --- NaN, saturation, tanh ----------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(SHU_OSHER_ALPHAS))
@pytest.mark.parametrize("column", [0, TILE - 1, TILE, 599])
def test_nan_stays_in_its_column(method, column):
    def run(state: Tensor) -> tuple[Tensor, Tensor]:
        state.requires_grad_(True)
        out = fixed_step_flow(state, fields(leaves(0, 3, 2, True)), h=0.2, steps=2, method=method)
        return out.detach(), torch.autograd.grad(out.sum(), state)[0]

    state = normal(3, 600)
    sick = state.clone()
    sick[1, column] = torch.nan
    others = torch.arange(600) != column
    for healthy, ill in zip(run(state), run(sick), strict=True):
        assert bool(ill[:, column].isnan().all())
        assert torch.equal(ill[:, others], healthy[:, others])


def one(b: float = 0.0, scale: float = 1.0) -> TanhField:
    return TanhField(A=torch.ones(1, 1), B=torch.full((1, 1), scale), b=torch.full((1, 1), b))


@pytest.mark.parametrize("scale", [18.0, 1e6, 3e38])
def test_a_saturated_tanh_is_exactly_one(scale):
    state = torch.tensor([[-2.0, -0.5, 0.5, 1.0]]).requires_grad_(True)
    out = fixed_step_flow(state, [one(scale=scale)], h=1.0, steps=1, method="euler")
    assert torch.equal(out, state + state.sign())
    (gradient,) = torch.autograd.grad(out.sum(), state)
    assert torch.equal(gradient, torch.ones(1, 4))


def test_an_infinite_state_saturates_too():
    state = torch.tensor([[-torch.inf, torch.inf]])
    assert torch.equal(fixed_step_flow(state, [one()], h=-1.0, steps=1, method="euler"), state)
    known = TanhField(A=-torch.eye(1), B=torch.eye(1), b=torch.full((1, 1), torch.inf))
    assert float(fixed_step_flow(torch.zeros(1, 1), [known], h=1.0, steps=1, method="euler")) == -1


def tanh(z: Tensor) -> Tensor:
    """tanh of the kernel, bit for bit: the step x + h (tanh x - x) with h = 1."""
    one = z.new_ones(1, 1)
    field = TanhField(A=one, B=one, b=0 * one, C=-one)
    return fixed_step_flow(z[None], [field], h=1.0, steps=1, method="euler")[0]


def test_tanh_is_right_to_six_digits_odd_and_never_beyond_one():
    z = torch.linspace(-20, 20, 400_001)
    found = tanh(z)
    assert float((found.double() - torch.tanh(z.double())).abs().max()) < 1e-6
    assert torch.equal(tanh(-z), -found)
    assert float(found.abs().max()) == 1
    assert bool((found[z.abs() >= 9.02].abs() == 1).all()), "where float32 holds nothing nearer"


def test_a_step_of_a_known_size_adds_h_tanh_x():
    z, h = torch.linspace(-20, 20, 4001), 2.0**20  # so large that z is lost in rounding
    moved = fixed_step_flow(z[None], [one()], h=h, steps=1, method="euler")[0]
    assert float(((moved.double() - z) / h - torch.tanh(z.double())).abs().max()) < 1e-6


def test_tanh_of_a_small_number_is_right_relative_to_it():
    z = torch.logspace(-30, -2, 1000)
    exact = torch.tanh(z.double())
    assert float(((tanh(z) - exact) / exact).abs().max()) < 1e-6


# --- where it is not used -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "compiled"),
        *((value, "compiled") for value in ("1", "", "yes")),
        *((value, "torchdiffeq") for value in ("0", "off", "False", "no")),
    ],
)
def test_the_environment_variable_sets_the_initial_backend(value, expected):
    environment = {} if value is None else {ENVIRONMENT_VARIABLE: value}
    assert _initial_backend(environment) == expected


def test_the_backend_is_restored_after_a_block():
    before = get_ode_backend()
    with suppress(ZeroDivisionError), use_ode_backend("torchdiffeq"):
        assert get_ode_backend() == "torchdiffeq"
        assert not supports(torch.zeros(2, 3), "euler")
        raise ZeroDivisionError
    assert get_ode_backend() == before
    assert supports(torch.zeros(2, 3), "euler")


def test_an_unknown_backend_is_refused():
    with pytest.raises(UnknownName, match="unknown ODE backend 'torchdifeq': did you mean torchdiffeq"):
        set_ode_backend("torchdifeq")
    assert get_ode_backend() == "compiled"


@pytest.mark.parametrize("method", ["midpoint", "rk4", "heun3", "dopri8"])
def test_other_methods_go_step_by_step(used, method):
    logits = build("node", method=method)(images())
    assert used == []
    assert bool(logits.isfinite().all())


def test_double_precision_goes_step_by_step(used):
    model = build("ch-node").double()
    assert model(images().double()).dtype == torch.float64
    assert used == []


def test_function_transforms_go_step_by_step_to_the_same_values(used):
    flow = build("h-node", method="ssprk3").flow  # torchdiffeq's own loop cannot be mapped over
    state = normal(8, 4)
    jacobian = torch.func.jacrev(flow)(state).detach()
    mapped = torch.func.vmap(lambda x: flow(x[:, None])[:, 0], in_dims=1, out_dims=1)(state).detach()
    assert used == []
    assert_close(flow(state).detach(), mapped)
    x = state.clone().requires_grad_(True)
    weights = normal(8, 4, seed=5)
    (gradient,) = torch.autograd.grad((flow(x) * weights).sum(), x)
    assert used == [1, 1]
    assert_close(gradient, (jacobian * weights[:, :, None, None]).sum((0, 1)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own, on the first dual
def test_forward_mode_goes_step_by_step(used):
    flow = build("h-node", method="ssprk3").flow
    state, direction = normal(8, 4), normal(8, 4, seed=5)
    with torch.autograd.forward_ad.dual_level():
        dual = flow(torch.autograd.forward_ad.make_dual(state, direction))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent.detach()
    assert used == []
    exact = flow.double()
    moved = [exact(state.double() + s * direction.double()).detach() for s in (1e-6, -1e-6)]
    assert_close(tangent, (moved[0] - moved[1]) / 2e-6)


def test_a_hook_on_a_layer_sees_every_evaluation(used):
    flow = build("node").flow
    state, seen = normal(8, 4), []
    handle = flow.layers[1].register_forward_hook(lambda *_: seen.append(1))
    hooked = flow(state).detach()
    assert (len(seen), used) == (flow.nfe / 4, [])
    handle.remove()
    assert_close(flow(state).detach(), hooked)
    assert used == [1]


def test_a_flow_that_changes_its_fields_goes_step_by_step(used):
    class Reversed(ODEBlock):
        def fields(self):
            return [lambda x, layer=layer: -layer(x) for layer in super().fields()]

    flow = Reversed([TanhLayer(3)], final_time=0.5, solver=Solver(method="euler", steps=1))
    layer, state = flow.layers[0], normal(3, 4)
    wanted = state - 0.5 * torch.tanh(layer.K @ state + layer.b)
    assert_close(flow(state).detach(), wanted.detach())
    assert not flow.has_tanh_fields()
    assert used == []


class Same(TanhLayer):
    pass


class Doubled(TanhLayer):
    def forward(self, state: Tensor) -> Tensor:
        return 2 * super().forward(state)


class Restated(TanhLayer):
    def tanh_field(self) -> TanhField:
        return TanhField(A=2 * torch.eye(len(self.K)), B=self.K, b=self.b)


class Both(Restated):
    def forward(self, state: Tensor) -> Tensor:
        return 2 * torch.tanh(torch.addmm(self.b, self.K, state))

    def tanh_field(self) -> TanhField:
        return super().tanh_field()


class Below(Doubled):
    pass


class RestatedBelow(Doubled):
    def tanh_field(self) -> TanhField:
        return TanhField(A=2 * torch.eye(len(self.K)), B=self.K, b=self.b)


class Called(TanhLayer):
    def __call__(self, state: Tensor) -> Tensor:
        return 2 * super().__call__(state)


@pytest.mark.parametrize(
    ("kind", "how", "factor"),
    [
        (TanhLayer, "matrices", 1),
        (Same, "matrices", 1),
        (Restated, "matrices", 2),
        (Both, "both", 2),
        (RestatedBelow, "both", 2),
        (Doubled, "forward", 2),
        (Below, "forward", 2),
        (Called, "forward", 2),
    ],
)
def test_a_layer_is_solved_by_what_its_class_states_last(used, kind, how, factor):
    layer = kind(3)
    flow = ODEBlock([layer], final_time=0.5, solver=Solver(method="euler", steps=1))
    state = normal(3, 4)
    wanted = state + 0.5 * factor * torch.tanh(layer.K @ state + layer.b)
    assert_close(flow(state).detach(), wanted.detach())
    assert statement_of(layer) == how
    assert (how != "forward") == flow.has_tanh_fields() == bool(used)


def test_one_layer_that_states_nothing_keeps_the_whole_flow_from_it(used):
    flow = ODEBlock([TanhLayer(3), Doubled(3)], final_time=1.0, solver=Solver(method="euler", steps=2))
    flow(normal(3, 4))
    assert used == []
    assert flow.nfe == 2


# --- matrices of few entries --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "few"),
    [
        (0.1 * torch.eye(8), True),
        (torch.eye(8) + 0.2 * torch.eye(8).roll(4, 1), True),
        (torch.zeros(8, 8), True),
        (torch.ones(1, 1), True),
        (torch.eye(3) + torch.ones(3, 3), False),
        (normal(8, 8), False),
    ],
)
def test_a_matrix_with_at_most_two_entries_in_each_row_is_known_by_them(matrix, few):
    dense, index, value, sparse = matrix_operand(matrix[None])
    n = len(matrix)
    assert sparse == few
    np.testing.assert_array_equal(dense[0, :, :n], matrix)
    if few:
        again = np.zeros((n, n), np.float32)
        np.add.at(again, (np.arange(n)[:, None], index[0]), value[0])
        np.testing.assert_array_equal(again, matrix)


@pytest.mark.parametrize("wanted", range(4))
def test_each_matrix_alone_can_ask_for_its_gradient(wanted, used):
    x, h = normal(8, 300), 0.2
    matrices = [normal(8, 8, seed=i) * 0.4 for i in (1, 2, 3)] + [normal(8, 1, seed=4)]
    matrices[wanted].requires_grad_(True)
    field = TanhField(A=matrices[0], B=matrices[1], C=matrices[2], b=matrices[3])
    out = fixed_step_flow(x, [field], h=h, steps=3, method="heun2")
    (found,) = torch.autograd.grad(out.square().sum(), matrices[wanted])
    reference = ode.shu_osher(field, x, method="heun2", h=h, steps=3)
    (expected,) = torch.autograd.grad(reference.square().sum(), matrices[wanted])
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("overrides", "change", "expected"),
    [
        ({}, lambda flow: flow, "numba"),
        ({"width": 16}, lambda flow: flow, "numba"),
        ({"width": 32}, lambda flow: flow, "eager"),
        ({}, lambda flow: flow.double(), "eager"),
        ({"method": "rk4"}, lambda flow: flow, "eager"),
        ({}, lambda flow: flow.layers[0].register_forward_hook(lambda *_: None), "eager"),
    ],
    ids=["as it is", "as wide as it goes", "too wide", "double", "another method", "hooked"],
)
def test_the_path_that_is_named_is_the_one_that_is_taken(overrides, change, expected):
    flow = build("ch-node", **overrides).flow
    change(flow)
    B = flow.tanh_fields()[0].B
    state = normal(len(B), 3, dtype=B.dtype).requires_grad_(True)
    assert flow.implementation(torch.device("cpu")) == expected
    assert (type(flow(state).grad_fn).__name__ == "_FixedStepFlowBackward") == (expected == "numba")


def test_gradients_of_matrices_are_computed_where_they_are_asked_for(monkeypatch):
    """An attack asks for that of the images alone, though parameters require theirs."""
    wanted, cpu = [], import_module("robustode.models.ode.kernels.cpu")

    class Spy:
        forward = staticmethod(cpu.forward)

        @staticmethod
        def backward(*args, needs_grad, **settings):
            wanted.append(any(needs_grad))
            return cpu.backward(*args, needs_grad=needs_grad, **settings)

    monkeypatch.setattr(fixed_step, "_kernels", lambda device: Spy)
    model, x = build("node"), images().requires_grad_(True)
    weight = next(model.flow.parameters())
    assert weight.requires_grad
    (one,) = torch.autograd.grad(model(x).sum(), x)
    two, other = torch.autograd.grad(model(x).sum(), (x, weight))
    (alone,) = torch.autograd.grad(model(x).sum(), weight)
    model(x).sum().backward()
    assert wanted == [False, True, True, True]
    assert torch.equal(one, two)
    assert torch.equal(other, alone)
    assert torch.equal(weight.grad, other)
    assert bool(other.any())
