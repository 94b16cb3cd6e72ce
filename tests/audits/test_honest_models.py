"""`robustode check` fails no honest model, says what it could not ask, and names a fault once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import stubs
import torch
from robustode import ODEBlock, Solver, evaluate
from robustode.bench.audits.expected_failures import CONFORMANCE_CHECKS
from robustode.bench.cli.main import main
from robustode.bench.conformance.checks import CHECKS
from robustode.bench.conformance.result import Result
from robustode.bench.conformance.run import check_model, run_check
from robustode.bench.records.store import Store
from robustode.models import ModelSpec
from torch import Tensor, nn


class Net(nn.Module):
    """Flatten, one hidden layer, logits."""

    dtype = torch.float32

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.stem = nn.Linear(channels * height * width, 8, dtype=self.dtype)
        self.head = nn.Linear(8, classes, dtype=self.dtype)

    def between(self, state: Tensor) -> Tensor:
        return torch.tanh(state)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.between(self.stem(images.flatten(1))))


class Energy(nn.Module):
    """x' = -grad E(x) by autograd; the last bias of E moves no gradient of it."""

    def __init__(self) -> None:
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 1))

    def forward(self, state: Tensor) -> Tensor:
        with torch.enable_grad():
            state = state if state.requires_grad else state.detach().requires_grad_(True)
            total = self.potential(state).sum()
            return -torch.autograd.grad(total, state, create_graph=True)[0]


class EnergyFlow(Net):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.flow = ODEBlock([Energy()], final_time=1.0, solver=Solver(method="rk4", steps=4))

    def between(self, state):
        return self.flow(state)


class Columns(nn.Module):
    """The same energy on columns (8, M), plus a strong pull: it contracts."""

    def __init__(self) -> None:
        super().__init__()
        self.energy_of_rows = Energy()

    def forward(self, state: Tensor) -> Tensor:
        return self.energy_of_rows(state.T).T - 100 * state


class ContractiveEnergy(EnergyFlow):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.flow = ODEBlock([Columns()], final_time=0.01, solver=Solver(method="rk4", steps=4))

    def between(self, state):
        return self.flow(state.T).T


class Times(Net):
    """Integration times in float64 beside float32 layers."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.register_buffer("times", torch.linspace(0, 1, 2, dtype=torch.float64))

    def between(self, state):
        return torch.tanh(state * self.times[-1].to(state))


class LearntTimes(Times):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self._parameters = {"end": nn.Parameter(torch.ones((), dtype=torch.float64)), **self._parameters}

    def between(self, state):
        return torch.tanh(state * self.end.to(state))


class Double(Net):
    dtype = torch.float64


class BrainFloat(Net):
    dtype = torch.bfloat16


class Half(Net):
    dtype = torch.float16


class FloatLogits(BrainFloat):
    """Half precision inside, float32 logits."""

    def forward(self, images):
        return super().forward(images).float()


class Steps(Net):
    """An integer buffer that counts."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def between(self, state):
        self.calls += 1
        return torch.tanh(state)


class Complex(Net):
    """Complex weights between two real layers."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.mix = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))

    def between(self, state):
        return (state.to(self.mix.dtype) @ self.mix).real


class Lazy(Net):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.stem, self.head = nn.LazyLinear(8), nn.LazyLinear(classes)


class Tied(Net):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.one = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def between(self, state):
        return self.other(torch.tanh(self.one(state)))


class Frozen(Net):
    """Its first layer is not trained."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.stem.requires_grad_(False)


class Normalised(Net):
    """Batch normalisation, which takes no batch of one in training."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.norm = nn.BatchNorm1d(8)

    def between(self, state):
        return torch.relu(self.norm(state))


class OwnBackward(Net):
    """An autograd function without a second derivative."""

    def between(self, state):
        return Square.apply(state)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Views(Net):
    """Returns a view of a wider tensor, out of order in memory."""

    def forward(self, images):
        wide = torch.cat([super().forward(images), super().forward(images)], 1)
        return wide.T.contiguous().T[:, : self.head.out_features]


class Hooked(Net):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.head.register_forward_hook(lambda module, inputs, output: 2 * output)
        self.register_full_backward_hook(lambda module, inputs, outputs: None)


class OwnGradient(Net):
    """Asks for the gradient by its input inside forward."""

    def forward(self, images):
        with torch.enable_grad():
            images = images.requires_grad_(True) if images.is_leaf else images
            logits = super().forward(images)
            slopes = torch.autograd.grad(logits.sum(), images, create_graph=True)[0]
        return logits + 0.1 * slopes.flatten(1)[:, : logits.shape[1]]


class Closure(Net):
    """Reaches its layer through a function, and holds a tensor with a graph."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.squash = lambda state: torch.tanh(self.stem.bias * 0 + state)
        self.last = self.head.weight * 2

    def between(self, state):
        return self.squash(state)


def constants(shape, classes) -> nn.Module:
    """No parameters at all."""
    model = Net(shape, classes)
    for layer in (model.stem, model.head):
        for name, value in list(layer.named_parameters()):
            delattr(layer, name)
            layer.register_buffer(name, value.detach())
    return model


HONEST: dict[str, Callable] = {
    "gradient of an energy": EnergyFlow,
    "float64 times": Times,
    "learnt float64 times": LearntTimes,
    "float64": Double,
    "bfloat16": BrainFloat,
    "float16": Half,
    "half inside": FloatLogits,
    "integer buffer": Steps,
    "complex": Complex,
    "lazy": Lazy,
    "tied": Tied,
    "frozen": Frozen,
    "batch norm": Normalised,
    "own backward": OwnBackward,
    "views": Views,
    "hooks": Hooked,
    "own gradient": OwnGradient,
    "closure": Closure,
    "buffers alone": constants,
}


def results(build: Callable, **attributes: object) -> dict[str, Result]:
    return {result.check: result for result in check_model(stubs.spec("model", build, **attributes))}


@pytest.mark.parametrize("name", HONEST)
def test_check_fails_no_honest_model(name):
    failed = [str(r) for r in results(HONEST[name]).values() if not r.passed]
    assert failed == []


@pytest.mark.parametrize("name", ["gradient of an energy", "float64 times", "float64", "complex", "bfloat16"])
def test_evaluate_takes_what_check_passes(name):
    table = evaluate(HONEST[name]((1, 8, 8), 10), threats=["clean", "pgd-linf"], samples=4, progress=False)
    assert table[table["statistic"] == "accuracy"]["value"].between(0, 1).all()


def test_a_true_claim_about_the_gradient_of_an_energy_passes():
    spec = stubs.spec("model", ContractiveEnergy, claims=frozenset({"contractive"}))
    result = run_check(spec, "claim:contractive")
    assert str(result) == "pass    claim:contractive"


# --- parameters that cannot matter ---------------------------------------------------------------


class Unused(Net):
    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.extra, self.more = nn.Linear(2, 2), nn.Linear(2, 2)


class Regularised(Net):
    """A parameter that the penalty alone trains."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.centre = nn.Parameter(torch.zeros(8))

    def penalty(self):
        return (self.head.weight - self.centre).square().sum()


def test_a_parameter_that_changes_no_logits_is_a_warning_that_names_it():
    line = str(results(EnergyFlow)["gradients"])
    assert line.startswith("warn    gradients: parameter flow.layers.0.potential.2.bias changes no logits")
    line = str(results(Unused)["gradients"])
    assert line.startswith(
        "warn    gradients: each of the parameters extra.weight, extra.bias, more.weight and 1"
    )
    assert str(results(Regularised)["gradients"]) == "pass    gradients"
    assert "--weights" in str(results(constants)["gradients"])


class Forgotten(EnergyFlow):
    """Differentiates the energy without a graph: its weights matter and are never trained."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.flow.layers[0].__class__ = ForgottenEnergy


class ForgottenEnergy(Energy):
    def forward(self, state):
        with torch.enable_grad():
            inner = state.detach().requires_grad_(True)
            return -torch.autograd.grad(self.potential(inner).sum(), inner)[0] - state


class Ungraded(EnergyFlow):
    """Differentiates where no graph is recorded, as in scoring."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.flow.layers[0].__class__ = UngradedEnergy


class UngradedEnergy(Energy):
    def forward(self, state):
        state = state.detach().requires_grad_(True)
        return -torch.autograd.grad(self.potential(state).sum(), state, create_graph=True)[0]


@pytest.mark.parametrize(
    ("build", "check", "advice"),
    [
        (Forgotten, "gradients", "needs create_graph=True"),
        (Ungraded, "shapes", "differentiate inside torch.enable_grad()"),
    ],
)
def test_an_energy_that_is_differentiated_wrongly_is_told_how(build, check, advice):
    result = results(build)[check]
    assert not result.passed
    assert advice in (result.error or "")


# --- outputs and inputs that nobody can use ------------------------------------------------------


class Pair(Net):
    def forward(self, images):
        logits = super().forward(images)
        return logits, logits


class Named(Net):
    def forward(self, images):
        return {"logits": super().forward(images)}


class Maps(Net):
    def forward(self, images):
        return super().forward(images)[:, :, None, None]


class FixedBatch(Net):
    def between(self, state):
        return torch.tanh(state.view(2, 8))


class Hidden(Net):
    """Changes its images where autograd cannot see it."""

    def forward(self, images):
        images.data.mul_(0.5)
        return super().forward(images)


class Inferred(Net):
    @torch.inference_mode()
    def forward(self, images):
        return super().forward(images)


class Extra(Net):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(
    ("build", "check", "advice"),
    [
        (Pair, "shapes", "the model returned tuple, not a tensor of logits: return the logits alone"),
        (Named, "shapes", "the model returned dict, not a tensor of logits: return the logits alone"),
        (Maps, "shapes", "not (2, 2): flatten them"),
        (FixedBatch, "shapes", "take a batch of any size"),
        (Hidden, "shapes", "the model changes its input: work on a copy"),
        (Inferred, "gradients", "nor run it without gradients"),
        (Extra, "state-round-trip", "keep tensors alone in it"),
    ],
)
def test_a_fault_is_told_in_one_line_that_says_what_to_do(build, check, advice):
    error = results(build)[check].error or ""
    assert advice in error
    assert "\n" not in error


# --- float64 -------------------------------------------------------------------------------------


class Single(Net):
    """A float32 constant that nothing converts."""

    def __init__(self, shape, classes) -> None:
        super().__init__(shape, classes)
        self.register_buffer("seed", torch.randn(8, 8))
        self.mix = lambda state, weight=self.seed: state @ weight

    def between(self, state):
        return self.mix(state)


class Refusing(Net):
    """Says that it cannot be converted, and cannot be copied either."""

    def between(self, state):
        if state.dtype == torch.float64:
            raise TypeError("float32 only")
        return torch.tanh(state)

    def double(self):
        raise TypeError("no")

    def __deepcopy__(self, memo):
        raise TypeError("no")


@pytest.mark.parametrize("build", [Single, Refusing])
def test_what_needs_float64_is_not_asked_of_a_model_without(build):
    found = results(build)
    assert [str(r) for r in found.values() if not r.passed] == []
    for check in ("double-precision", "gradient-fidelity"):
        assert str(found[check]).startswith(f"unasked {check}: The model cannot be asked in float64: ")
    assert str(found["zero-gradients"]) == "pass    zero-gradients"


# --- one name for an exemption -------------------------------------------------------------------


class Batched(Net):
    def between(self, state):
        return torch.tanh(state - state.mean(0))


@pytest.mark.parametrize("name", ["batch_independent", "batch-independent", "batch_independence"])
def test_an_exemption_is_written_once_in_any_spelling(name):
    found = results(Batched, expected_failures={name: "by design"})
    assert str(found["batch-independence"]).startswith("exempt  batch-independence: by design [")
    spec = ModelSpec(name="batched", build=Batched, expected_failures={name: "by design"})
    assert spec.expected_failures == {"batch-independence": "by design"}
    claimed = ModelSpec(name="x", build=Net, expected_failures={"claim:fixed_step": "by design"})
    assert claimed.expected_failures == {"claim:fixed_step": "by design"}


def test_the_checks_that_may_be_expected_to_fail_are_those_there_are():
    assert set(CONFORMANCE_CHECKS) == set(CHECKS)


# --- a whole run ---------------------------------------------------------------------------------


RUN = '''
import torch
from robustode import ODEBlock, Solver
from torch import nn


class Energy(nn.Module):
    def __init__(self):
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 1))

    def forward(self, state):
        with torch.enable_grad():
            rows = state.T if state.requires_grad else state.T.detach().requires_grad_(True)
            return -torch.autograd.grad(self.potential(rows).sum(), rows, create_graph=True)[0].T


class Net(nn.Module):
    """A field by autograd, a float64 time, and the features of the last pass kept with their graph."""

    def __init__(self, shape, classes):
        super().__init__()
        self.stem, self.head = nn.Linear(64, 8), nn.Linear(8, classes)
        self.register_buffer("time", torch.ones((), dtype=torch.float64))
        self.flow = ODEBlock([Energy()], final_time=1.0, solver=Solver(method="euler", steps=2))

    def forward(self, images):
        self.last = self.stem(images.flatten(1)) * self.time.to(self.stem.weight)
        return self.head(self.flow(self.last.T).T)


class Single(Net):
    """Computes in float32 whatever it is converted to."""

    def forward(self, images):
        return super().forward(images).float()


def honest(input_shape, num_classes):
    return Net(input_shape, num_classes)


def single(input_shape, num_classes):
    return Single(input_shape, num_classes)
'''


@pytest.mark.usefixtures("registries")
def test_a_run_trains_attacks_times_and_follows_them(tmp_path, capsys):
    preset, file = stubs.preset_file(tmp_path), tmp_path / "nets.py"
    file.write_text(RUN)
    models = f"{file}:honest,{file}:single"
    out = str(tmp_path / "out")
    assert main(["run", "--preset", str(preset), "--models", models, "--out", out, "--jobs", "1"]) == 0
    records, _ = Store(Path(out)).load()
    assert {record.status for record in records} == {"ok"}
    (dynamics,) = [r for r in records if r.cell.kind == "dynamics" and r.cell.model == "single"]
    assert "cannot be asked in float64" in dynamics.card["no_dynamics"]
