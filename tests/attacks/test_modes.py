"""A module is asked in eval mode, set by its own `eval()`, and put back by its own `train()`."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from robustode import evaluate
from robustode.attacks.core.frozen_model import frozen
from robustode.attacks.core.modes import eval_mode, set_mode, training_mode
from robustode.attacks.core.queried_model import QueriedModel
from robustode.bench.config.preset import Recipe
from robustode.bench.records.checkpoint import load_state, load_tensors
from robustode.bench.solvers.observe import is_compiled
from robustode.bench.training.train import build_model, score, train
from torch import Tensor, nn

PIXELS, CLASSES = 64, 10


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(PIXELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


class Noisy(Base):
    """Its noise is switched by `train`, and by no flag."""

    noisy = True

    def train(self, mode: bool = True) -> Noisy:
        super().train(mode)
        self.noisy = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.noisy * torch.rand(len(images), CLASSES)


class Returnless(Noisy):
    """`eval` and `train` return nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def eval(self) -> None:  # type: ignore[override]
        self.train(False)


class Argumentless(Noisy):
    """`train` takes no argument."""

    def train(self) -> None:  # type: ignore[override]
        nn.Module.train(self, True)
        self.noisy = True

    def eval(self) -> None:  # type: ignore[override]
        nn.Module.train(self, False)
        self.noisy = False


class Flagless(Noisy):
    """Switches its noise without the flag of `nn.Module`."""

    def train(self, mode: bool = True) -> Flagless:
        self.noisy = mode
        return self


class Merging(Base):
    """Adds a product of low rank to the weights for evaluation, and takes it away for training."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.randn(CLASSES, 2))
        self.rank = nn.Parameter(torch.randn(2, PIXELS))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged is mode:
            change = (self.low @ self.rank).detach()
            self.head.weight.data += -change if mode else change
            self.merged = not mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.head(flat) + (0.0 if self.merged else flat @ (self.low @ self.rank).T)


class Fusing(Base):
    """Replaces two layers by one for evaluation, so that its parameters have other names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, PIXELS)
        self.one: nn.Linear | None = None

    def eval(self) -> Fusing:
        super().eval()
        if self.one is None:
            one = nn.Linear(PIXELS, CLASSES)
            with torch.no_grad():
                one.weight.copy_(self.head.weight @ self.first.weight)
                one.bias.copy_(self.head.weight @ self.first.bias + self.head.bias)
            self.one = one.eval()
            self.stored = self.first, self.head
            del self.first, self.head
        return self

    def train(self, mode: bool = True) -> Fusing:
        if mode and self.one is not None:
            self.first, self.head = self.stored
            self.one = None
            del self.stored
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.head(self.first(flat)) if self.one is None else self.one(flat)


KINDS: dict[str, Any] = {
    kind.__name__.lower(): kind for kind in (Noisy, Returnless, Argumentless, Flagless, Merging)
}
IMAGES = torch.rand(6, 1, 8, 8)


def in_its_eval(module: nn.Module) -> Tensor:
    module.eval()
    with torch.no_grad():
        return module(IMAGES)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_asks_a_module_in_training_mode_as_its_own_eval_would(kind):
    one, other = KINDS[kind](), KINDS[kind]()
    other.load_state_dict(one.state_dict())
    asked = {"threats": ["clean", ("pgd-linf", 0.02), ("fmn-l2", 0.2)], "samples": 60}
    set_mode(one, training=False)
    expected = evaluate(one, **asked)
    set_mode(other, training=True)
    before = vars(other).copy()
    assert evaluate(other, **asked).equals(expected)
    assert {name: before[name] for name in ("noisy", "merged", "training") if name in before} == {
        name: vars(other)[name] for name in ("noisy", "merged", "training") if name in vars(other)
    }


def test_a_module_that_fuses_layers_for_evaluation_is_itself_again_afterwards():
    net = Fusing()
    names, weights = set(net.state_dict()), net.head.weight
    with frozen(net):
        assert net.one is not None
        fused = net(IMAGES)
    assert set(net.state_dict()) == names
    assert net.head.weight is weights
    assert all(parameter.requires_grad for parameter in net.parameters())
    torch.testing.assert_close(net(IMAGES), fused)


@pytest.mark.parametrize("outer", [True, False])
def test_submodules_in_mixed_modes_are_put_back_as_they_were(outer):
    net = nn.Sequential(Noisy(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(CLASSES)), Noisy())
    net.train(outer)
    net[1][0].train(), net[1][1].eval(), net[2].train(not outer)
    modes = [module.training for module in net.modules()]
    noise = [net[0].noisy, net[2].noisy]
    with contextlib.suppress(ZeroDivisionError), frozen(net):
        assert not any(module.training for module in net.modules())
        assert [net[0].noisy, net[2].noisy] == [False, False]
        with frozen(net):  # an attack within an evaluation
            pass
        assert not any(module.training for module in net.modules())
        raise ZeroDivisionError
    assert [module.training for module in net.modules()] == modes
    assert [net[0].noisy, net[2].noisy] == noise


def test_an_attack_does_not_change_the_mode_in_which_the_model_is_asked():
    net = Noisy()
    with frozen(net):
        queried = QueriedModel(net)
        queried.train()
        with frozen(queried):
            pass
        queried.eval(), queried.train(True)
        assert not net.noisy
        assert not net.training
    assert net.noisy


def test_a_module_in_eval_mode_is_left_alone():
    calls: list[bool] = []

    class Counted(Base):
        def train(self, mode: bool = True) -> Counted:
            calls.append(mode)
            return super().train(mode)

    net = Counted()
    net.eval()
    calls.clear()
    with frozen(net):
        net(IMAGES)
    assert calls == []


@pytest.mark.parametrize("kind", [Merging, Fusing])
def test_weights_are_those_of_training_mode(kind, few, tmp_path):
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.01)
    results = []
    for stop in (False, True):
        model = build_model(lambda shape, classes: kind(), few, {}, 0)
        path = tmp_path / f"{kind.__name__}-{stop}.safetensors.xz"
        asked = {"seed": 0, "path": path, "facts": {"cell": {}}, "device": torch.device("cpu")}
        if stop:
            train(model, few, recipe.model_copy(update={"epochs": 1}), **asked)
            model = build_model(lambda shape, classes: kind(), few, {}, 0)
        train(model, few, recipe, **asked)
        again = build_model(lambda shape, classes: kind(), few, {}, 0)
        with training_mode(again):
            load_state(again, load_tensors(path)[0], path)
        torch.testing.assert_close(again(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
        alone = kind()
        alone.load_state_dict(load_tensors(path)[0])  # as its author would
        torch.testing.assert_close(in_its_eval(alone), model(IMAGES), rtol=1e-4, atol=1e-4)
        results.append(score(model, few.validation, 60, torch.device("cpu"), 10))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_transformer_uses_its_fast_path_and_is_put_back():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.5)
    net = nn.Sequential(nn.Flatten(2, 3), nn.Flatten(0, 0), nn.Unflatten(2, (8, 8)), nn.Flatten(1, 2), layer)
    net.append(nn.Flatten()).append(nn.Linear(PIXELS, CLASSES)).train()
    one = evaluate(net, threats=("clean", "pgd-linf"), samples=10)
    assert all(module.training for module in net.modules())
    net.eval()
    assert evaluate(net, threats=("clean", "pgd-linf"), samples=10).equals(one)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 3)).eval()


EXPORTED = {
    "script": lambda x: torch.jit.script(plain()),
    "inside": lambda x: nn.Sequential(torch.jit.script(plain())),
    "trace": lambda x: torch.jit.trace(plain(), x),
    "freeze": lambda x: torch.jit.freeze(torch.jit.script(plain())),
    "export": lambda x: torch.export.export(plain(), (x,)).module(),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:Warning")  # deprecated
@pytest.mark.parametrize("form", EXPORTED)
def test_a_module_that_torch_exported_answers_as_it_is(form):
    images = torch.rand(2, 4)
    model = EXPORTED[form](images)
    with eval_mode(model):
        first, again = model(images), model(images)
    assert torch.equal(first, again)
    assert not is_compiled(model)
