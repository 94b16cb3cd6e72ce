"""What a model states beside what it computes: one statement, or two that are compared on real states."""

from __future__ import annotations

import types

import pytest
import torch
from robustode._errors import ContractBroken
from robustode.bench.training.check_statements import check_statements
from robustode.models import (
    MatrixField,
    NoCertificate,
    ODEBlock,
    PixelNetwork,
    Solver,
    TanhField,
    stated_lipschitz_parts,
    use_ode_backend,
)
from robustode.models.ch_node import ContractiveFlow, ContractiveLayer
from robustode.models.ch_node_lipschitz import OrthogonalFlow, OrthogonalLayer
from robustode.models.node import TanhLayer
from robustode.models.ode.statement import statement_of
from torch import Tensor, nn


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def network(layer, method: str = "heun2", block: type = ODEBlock) -> PixelNetwork:
    layers = layer if isinstance(layer, list) else [layer]
    flow = block(layers, final_time=1.0, solver=Solver(method=method, steps=4))
    return PixelNetwork((1, 8, 8), 10, flow, width=4).eval()


class Twice(nn.Module):
    """tanh(K x + b), written by hand in both forms, as files before `MatrixField` did."""

    def __init__(self) -> None:
        super().__init__()
        self.K = nn.Parameter(torch.randn(4, 4) / 2)
        self.b = nn.Parameter(0.1 * torch.randn(4, 1))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, state: Tensor) -> Tensor:
        return torch.tanh(self.K @ state + self.b)

    def tanh_field(self) -> TanhField:
        return TanhField(A=torch.eye(4), B=self.K, b=self.b)


class Damped(Twice):
    def forward(self, state):
        return super().forward(state) - 0.3 * state

    def tanh_field(self):
        return super().tanh_field()


class Gated(Damped):
    """It agrees at initialisation alone."""

    def forward(self, state):
        return Twice.forward(self, state) + self.gate * state

    def tanh_field(self):
        return super().tanh_field()


class SquareGated(Gated):
    """At initialisation its gradients agree too."""

    def forward(self, state):
        return Twice.forward(self, state) + self.gate**2 * state

    def tanh_field(self):
        return super().tanh_field()


class Clamped(Gated):
    """It agrees on every state that an image reaches, not where an attack may lead."""

    def forward(self, state):
        return Twice.forward(self, state.clamp(-5, 5))

    def tanh_field(self):
        return super().tanh_field()


class InTraining(Gated):
    def forward(self, state):
        return Twice.forward(self, state) * (1.1 if self.training else 1.0)

    def tanh_field(self):
        return super().tanh_field()


class BatchMean(Gated):
    def forward(self, state):
        return Twice.forward(self, state) + (1e-3 * state.mean(1, keepdim=True) if state.shape[1] > 1 else 0)

    def tanh_field(self):
        return super().tanh_field()


class AloneDifferent(Gated):
    def forward(self, state):
        return Twice.forward(self, state) * (2 if state.shape[1] == 1 else 1)

    def tanh_field(self):
        return super().tanh_field()


class Detached(Gated):
    """The same values with other gradients."""

    def forward(self, state):
        return torch.tanh(self.K @ state.detach() + self.b)

    def tanh_field(self):
        return super().tanh_field()


class Frozen(Gated):
    """Matrices of the weights at initialisation."""

    def __init__(self):
        super().__init__()
        self.first = self.K.detach().clone()

    def tanh_field(self):
        return TanhField(B=self.first, b=self.b)

    def forward(self, state):
        return Twice.forward(self, state)


class Later(Gated):
    """Other matrices than its parent's forward computes."""

    forward = Twice.forward

    def tanh_field(self):
        return TanhField(B=self.K.T, b=self.b)


class Row(Gated):
    """The wrong shape."""

    def tanh_field(self):
        return TanhField(B=self.K, b=self.b.T)

    def forward(self, state):
        return Twice.forward(self, state)


DIFFERENT = [
    Damped, Gated, SquareGated, Clamped, InTraining, BatchMean, AloneDifferent, Detached, Frozen, Later, Row,
]  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("method", ["heun2", "dopri5", "rk4"])
def test_two_statements_that_differ_are_refused(kind, method):
    with pytest.raises(ContractBroken, match="write the field once") as caught:
        check_statements(network(kind(), method), images())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_message_says_by_how_much_and_where():
    match = "^the field's forward and its stated matrices differ by 0.* of their size on states of the train"
    with pytest.raises(ContractBroken, match=match):
        check_statements(network(Damped()), images())


@pytest.mark.parametrize("kind", [Gated, SquareGated])
def test_a_term_that_training_makes_is_found_in_the_trained_network(kind):
    model = network(kind()).requires_grad_(False)
    check_statements(model, images())
    model.flow.layers[0].gate.fill_(0.01)
    with pytest.raises(ContractBroken, match="on states of some images"):
        check_statements(model, images(), of="some images")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("method", ["heun2", "dopri5"])
def test_two_statements_of_one_field_are_taken(scale, method):
    layer = Twice()
    with torch.no_grad():
        layer.K.mul_(scale)
    model = network([layer, Twice()], method).train()
    assert [statement_of(each) for each in model.flow.layers] == ["both", "both"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    check_statements(model, images())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


class Product(nn.Module):
    """The field of CH-NODE in factors, whose rounding differs from that of the product."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.K = nn.Parameter(size * torch.randn(4, 4))
        self.b = nn.Parameter(torch.randn(4, 1))
        self.F = torch.randn(4, 4) - 300 * torch.eye(4)

    def forward(self, state: Tensor) -> Tensor:
        gradient = self.K @ torch.tanh(torch.addmm(self.b, self.K.T, state)) + 0.02**2 * state
        return self.F @ gradient

    def tanh_field(self) -> TanhField:
        return TanhField(A=self.F @ self.K, B=self.K.T, b=self.b, C=0.02**2 * self.F)


@pytest.mark.parametrize("size", [1.0, 5.0])
def test_rounding_is_no_difference_however_stiff_the_field(size):
    for seed in range(5):
        torch.manual_seed(seed)
        check_statements(network([Product(size), Product(size)], "euler"), images())


def test_every_layer_is_compared():
    with pytest.raises(ContractBroken, match="write the field once"):
        check_statements(network([Twice(), TanhLayer(4), Twice(), Damped()]), images())


# --- one statement --------------------------------------------------------------------------------


class Stated(MatrixField):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def tanh_field(self) -> TanhField:
        weight, bias = self.linear.weight, self.linear.bias
        return TanhField(A=weight.T, B=weight, b=bias[:, None], C=-0.1 * torch.eye(4).to(weight))


class Written(nn.Module):
    """The field of `Stated`, as `forward` alone."""

    def __init__(self, like: Stated) -> None:
        super().__init__()
        self.linear = like.linear

    def forward(self, state: Tensor) -> Tensor:
        return (torch.tanh(self.linear(state.T)) @ self.linear.weight).T - 0.1 * state


def test_forward_compiled_path_and_bounds_follow_from_the_matrices():
    layer = Stated()
    stated, written = network(layer), network(Written(layer))
    written.load_state_dict(stated.state_dict())
    x = images()
    torch.testing.assert_close(stated(x), written(x), rtol=1e-5, atol=1e-6)
    with use_ode_backend("torchdiffeq"):
        torch.testing.assert_close(stated(x), written(x), rtol=1e-5, atol=1e-6)
    assert stated.flow.implementation(torch.device("cpu")) == "numba"
    assert written.flow.implementation(torch.device("cpu")) == "eager"
    assert stated_lipschitz_parts(stated).body["flow"] > 1
    with pytest.raises(NoCertificate, match="do not state their matrices"):
        stated_lipschitz_parts(written)


def test_a_parametrised_layer_is_one_statement():
    from torch.nn.utils import parametrizations

    layer = Stated()
    parametrizations.weight_norm(layer.linear)
    model = network(layer)
    assert statement_of(layer) == "matrices"
    x = images().requires_grad_(True)
    compiled = model(x)
    with use_ode_backend("torchdiffeq"):
        torch.testing.assert_close(model(x), compiled, rtol=1e-5, atol=1e-6)
    compiled.sum().backward()
    assert layer.linear.parametrizations.weight.original1.grad.abs().sum() > 0


def test_matrices_that_change_with_each_call_are_evaluated_once_a_pass():
    """A spectral norm takes a step of its power iteration at each use while it trains."""
    from torch.nn.utils import parametrizations

    def answer(backend: str) -> Tensor:
        torch.manual_seed(0)
        layer = Stated()
        parametrizations.spectral_norm(layer.linear)
        with use_ode_backend(backend):
            return network(layer).train()(images())

    torch.testing.assert_close(answer("compiled"), answer("torchdiffeq"), rtol=1e-5, atol=1e-6)


def test_a_field_without_a_statement_says_so():
    with pytest.raises(NotImplementedError, match=r"define tanh_field\(\)"):
        MatrixField()(torch.zeros(2, 3))


# --- what is changed from outside -----------------------------------------------------------------


def _patched(model: PixelNetwork) -> None:
    layer = model.flow.layers[0]
    layer.forward = types.MethodType(lambda self, state: 2 * self.tanh_field()(state), layer)


def _hooked(model: PixelNetwork) -> None:
    model.flow.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def _hooked_before(model: PixelNetwork) -> None:
    model.flow.layers[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


@pytest.mark.parametrize("change", [_patched, _hooked, _hooked_before])
def test_a_changed_layer_is_called_as_it_is_on_both_backends_and_has_no_bound(change):
    model = network(TanhLayer(4))
    plain = model(images())
    change(model)
    changed = model(images())
    assert not torch.allclose(plain, changed, atol=1e-3)
    with use_ode_backend("torchdiffeq"):
        assert torch.equal(model(images()), changed)
    with pytest.raises(NoCertificate):
        stated_lipschitz_parts(model)


def _other_forward(model: PixelNetwork) -> None:
    model.forward = lambda x: 100 * type(model).forward(model, x)


class Louder(PixelNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return 100 * super().forward(images)


class LouderFlow(ODEBlock):
    def forward(self, state: Tensor) -> Tensor:
        return 100 * super().forward(state)


CHANGES = {
    "forward of the instance": _other_forward,
    "forward of the flow": lambda model: setattr(model.flow, "forward", lambda x: 100 * x),
    "hook on the network": lambda model: model.register_forward_hook(lambda m, i, o: 100 * o),
    "hook on the flow": lambda model: model.flow.register_forward_hook(lambda m, i, o: 100 * o),
    "hook on the stem": lambda model: model.stem.register_forward_hook(lambda m, i, o: 100 * o),
    "hook on the head": lambda model: model.head.register_forward_pre_hook(lambda m, i: (100 * i[0],)),
    "another stem": lambda model: setattr(model, "stem", nn.Sequential(model.stem, nn.Conv2d(4, 4, 1))),
    "stride of the stem": lambda model: setattr(model.stem, "dilation", (2, 2)),
    "class of the network": lambda model: setattr(model, "__class__", Louder),
    "class of the flow": lambda model: setattr(model.flow, "__class__", LouderFlow),
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_certificate_speaks_of_another_network(name):
    model = network(TanhLayer(4))
    assert stated_lipschitz_parts(model).body
    CHANGES[name](model)
    with pytest.raises(NoCertificate):
        stated_lipschitz_parts(model)


def test_a_subclass_that_states_bounds_of_its_own_forward_is_heard():
    class Both(Louder):
        def lipschitz_parts(self):
            return "its own"

    model = network(TanhLayer(4))
    model.__class__ = Both
    assert stated_lipschitz_parts(model) == "its own"


# --- constants that a flow states by hand ---------------------------------------------------------


class Repelling(ContractiveLayer):
    def forward(self, state: Tensor, gamma: Tensor) -> Tensor:
        return -super().forward(state, gamma)


def contractive(kind: type = ContractiveLayer) -> PixelNetwork:
    solver = Solver(method="heun2", steps=4)
    layers = [kind(4, kappa=0.5), kind(4, kappa=0.5)]
    flow = ContractiveFlow(layers, kappa=0.5, margin=0.1, final_time=1.0, solver=solver)
    return PixelNetwork((1, 8, 8), 10, flow, width=4).eval()


def test_a_rate_that_the_layers_do_not_have_is_refused():
    check_statements(contractive(), images())
    with pytest.raises(ContractBroken, match=r"states a contraction rate of .* move apart at a rate of"):
        check_statements(contractive(Repelling), images())


def test_a_bound_that_the_flow_exceeds_is_refused():
    class Understated(ODEBlock):
        def solver_bound(self) -> float:
            return 0.5

    with pytest.raises(ContractBroken, match="but moves two states"):
        check_statements(network(TanhLayer(4), block=Understated), images())
    model = network(TanhLayer(4))
    model.flow.solver_bound = lambda: 0.5
    with pytest.raises(ContractBroken, match="but moves two states"):
        check_statements(model, images())


def test_the_bound_of_an_orthogonal_flow_follows_its_solver():
    flow = OrthogonalFlow(4, 2, kappa=0.1, margin=2.0)
    assert flow.solver_bound() <= 1
    flow.final_time *= 10
    assert flow.solver_bound() > 1
    flow.solver = Solver(method="rk4", steps=2)
    with pytest.raises(NoCertificate, match="rk4"):
        flow.solver_bound()
    assert isinstance(flow.layers[0], OrthogonalLayer)


class GivesUp(nn.Module):
    """Raises at images whose first pixel is 0, after the flow was solved."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        if bool((batch[:, 0, 0, 0] == 0).any()):
            raise AssertionError("underflow in dt 0.0")
        return self.model(batch)


@pytest.mark.parametrize(("layer", "agrees"), [(Twice, True), (Damped, False)])
def test_images_without_an_answer_decide_nothing(layer, agrees):
    marked = images()
    marked[[0, 3], 0, 0, 0] = 0.0
    model = GivesUp(network(layer()))
    if agrees:
        check_statements(model, marked)
    else:
        with pytest.raises(ContractBroken, match="differ by"):
            check_statements(model, marked)
    with pytest.raises(AssertionError, match="underflow in dt"):
        check_statements(model, torch.zeros_like(marked))
