"""CheckedModel counts every query of a model and checks every answer."""

from __future__ import annotations

from functools import partial

import pytest
import stubs
import torch
from robustode._errors import ContractBroken, InvalidArgument, ModelFailure, NonFinite, one_line
from robustode.attacks.core import queried_model
from robustode.attacks.core.model_call import call_model
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.models import Solver
from torch import nn

IMAGES = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def ask(fault):
    return call_model(stubs.Faulty((1, 2, 2), 3, fault), IMAGES, 3)


def crash(logits, images):
    raise KeyError("weights\nsecond line")


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (lambda z, x: z.tolist(), ContractBroken, "returned list, not a tensor"),
        (lambda z, x: None, ContractBroken, "returned NoneType"),
        (lambda z, x: z[:, :2], ContractBroken, r"shape \(4, 2\) for 4 images, not \(4, 3\)"),
        (lambda z, x: z[:3], ContractBroken, r"shape \(3, 3\) for 4 images"),
        (lambda z, x: z[0], ContractBroken, r"shape \(3,\)"),
        (lambda z, x: z.argmax(1, keepdim=True).expand(4, 3), ContractBroken, "torch.int64, not floating"),
        (lambda z, x: z * torch.nan, NonFinite, "NaN or infinite for 4 of 4"),
        (
            lambda z, x: torch.cat([z[:1] + torch.inf, z[1:]]),
            NonFinite,
            "logits are NaN or infinite for 1 of 4 samples",
        ),
        (crash, ModelFailure, "the model raised KeyError: 'weights"),
    ],
)
def test_a_broken_answer_is_an_error_of_its_kind(fault, kind, message):
    with pytest.raises(kind, match=message) as caught:
        ask(fault)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_our_own_errors_pass_unchanged():
    def refuse(logits, images):
        raise InvalidArgument("as it is")

    with pytest.raises(InvalidArgument, match=r"^as it is$"):
        ask(refuse)


def test_a_sound_answer_is_returned_as_it_is():
    assert torch.equal(ask(lambda z, x: z * 0 + 1), torch.ones(4, 3))
    assert ask(lambda z, x: z.half()).dtype == torch.float16


def test_statuses_of_the_errors():
    assert (ModelFailure.status, ContractBroken.status, NonFinite.status) == (
        "error",
        "contract",
        "nonfinite",
    )


def test_forwards_backwards_and_evaluations_are_counted_per_sample():
    queried = CheckedModel(stubs.Linear((1, 2, 2), 3, nfe=7), 3)
    assert queried.nfe is None
    with torch.no_grad():
        queried(IMAGES)
        queried(IMAGES[:1])
    assert (queried.forwards, queried.backwards, queried.evaluations, queried.nfe) == (5, 0, 35, 7.0)
    images = IMAGES.clone().requires_grad_(True)
    queried(images).sum().backward()
    assert (queried.forwards, queried.backwards) == (9, 4)


def test_the_mean_nfe_is_weighted_by_samples():
    class Varying(stubs.Linear):
        def forward(self, images):
            self.still.solver = Solver(method="euler", steps=10 if len(images) == 1 else 20)
            return super().forward(images)

    queried = CheckedModel(Varying((1, 2, 2), 3, nfe=1), 3)
    queried(IMAGES)
    queried(IMAGES[:1])
    assert queried.nfe == (4 * 20 + 10) / 5


def test_a_model_of_which_no_solver_is_seen_has_no_nfe_whatever_it_says():
    model = stubs.Linear((1, 2, 2), 3)
    model.nfe = 7
    queried = CheckedModel(model, 3)
    queried(IMAGES)
    assert queried.nfe is None


def test_a_nan_input_gradient_raises_during_the_backward_pass():
    def spoil(logits, images):
        return logits + (images - images).flatten(1).sqrt().sum(1, keepdim=True)

    queried = CheckedModel(stubs.Faulty((1, 2, 2), 3, spoil), 3)
    logits = queried(IMAGES.clone().requires_grad_(True))
    with pytest.raises(NonFinite, match="input gradient is NaN or infinite for 4 of 4 samples"):
        logits.sum().backward()


def test_a_deferred_check_raises_once_it_is_asked_for():
    def spoil(logits, images):
        return torch.where(images.flatten(1).sum(1, keepdim=True) > 0, logits / 0, logits)

    queried = CheckedModel(stubs.Faulty((1, 2, 2), 3, spoil), 3, deferred=True)
    queried(torch.zeros_like(IMAGES))
    queried.raise_pending()
    queried(IMAGES)
    queried(torch.zeros_like(IMAGES))
    with pytest.raises(NonFinite, match="logits are NaN or infinite for 4 of 4 samples"):
        queried.raise_pending()
    queried.raise_pending()


def test_deferred_checks_are_made_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(queried_model, "MAX_PENDING", 3)
    queried = CheckedModel(stubs.Faulty((1, 2, 2), 3, lambda z, x: z / 0), 3, deferred=True)
    queried(IMAGES)
    queried(IMAGES)
    with pytest.raises(NonFinite, match="4 of 4"):
        queried(IMAGES)


def test_the_first_check_that_is_not_fine_is_the_one_that_raises():
    def refuse(what):
        raise InvalidArgument(what)

    queried = CheckedModel(stubs.Linear((1, 2, 2), 3), 3, deferred=True)
    for fine, what in ((True, "one"), (False, "two"), (False, "three")):
        queried.require(torch.tensor([True, fine]), partial(refuse, what))
    with pytest.raises(InvalidArgument, match=r"^two$"):
        queried.raise_pending()
    queried.raise_pending()
    strict = CheckedModel(stubs.Linear((1, 2, 2), 3), 3)
    strict.require(torch.tensor([True]), partial(refuse, "one"))
    with pytest.raises(InvalidArgument, match=r"^two$"):
        strict.require(torch.tensor([False]), partial(refuse, "two"))


def test_deferred_checks_are_made_of_gradients_too():
    def spoil(logits, images):
        return logits + (images - images).flatten(1).sqrt().sum(1, keepdim=True)

    queried = CheckedModel(stubs.Faulty((1, 2, 2), 3, spoil), 3, deferred=True)
    images = IMAGES.clone().requires_grad_(True)
    torch.autograd.grad(queried(images).sum(), images)
    with pytest.raises(NonFinite, match="input gradient is NaN or infinite for 4 of 4 samples"):
        queried.raise_pending()


def test_one_line_is_one_line():
    assert one_line(ValueError("\n  first  \nsecond")) == "first"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 300), limit=10) == "x" * 9 + "…"


def test_out_of_memory_is_not_the_models_fault():
    class Full(nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        call_model(Full(), IMAGES, 3)


def test_an_exception_names_the_line_of_the_model(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def fail(x):\n    raise ValueError('my bug')\n")
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)

    class Model(nn.Module):
        def forward(self, images):
            return scope["fail"](images)

    with pytest.raises(ModelFailure, match=r"the model raised ValueError: my bug \(mine\.py:2\)"):
        call_model(Model(), torch.rand(2, 1, 8, 8), 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_is_handed_images_of_its_own_type(dtype):
    model, seen = stubs.Linear((1, 2, 2), 3).to(dtype), []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dtype))
    images = IMAGES.clone().requires_grad_(True)
    logits = CheckedModel(model, 3)(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert seen == [dtype] == [logits.dtype]
    assert gradient.dtype == torch.float32


def test_one_without_parameters_or_with_its_type_as_first_is_handed_them_as_they_are():
    class Keeps(nn.Module):
        def __init__(self, parameter):
            super().__init__()
            self.parameter = parameter

        def forward(self, images):
            assert (images.data_ptr(), images.dtype) == (IMAGES.data_ptr(), IMAGES.dtype)
            return images.flatten(1)[:, :3]

    call_model(Keeps(None), IMAGES, 3)
    call_model(Keeps(nn.Parameter(torch.zeros(1))), IMAGES, 3)
    call_model(Keeps(nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)), IMAGES, 3)
