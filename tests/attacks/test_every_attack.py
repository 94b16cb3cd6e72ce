"""What every attack of the registry promises: memory, modes, what is not finite, graphs, classes, batches."""

from __future__ import annotations

import pytest
import stubs
import torch
from robustode._errors import NonFinite
from robustode.attacks import BUDGET_TOLERANCE, THREATS, Threat, closest, violation
from robustode.attacks.core.memory import out_of_memory
from robustode.bench.runtime.checked_model import CheckedModel
from test_batch_state import images_for, smooth
from torch import nn

SMALL = {"steps": 4, "targets": 3, "queries": 20, "directions": 2, "restarts": 2, "rounds": 2, "refine": 3}


def cut(threat: Threat, **sizes: int) -> Threat:
    sizes = {**SMALL, **sizes}
    return threat.configure(**{name: value for name, value in sizes.items() if name in threat.parameters})


ATTACKS = [cut(threat) for threat in THREATS if threat.family not in ("clean", "noise")]
every = pytest.mark.parametrize("threat", ATTACKS, ids=lambda threat: threat.name)
EPS = {"linf": 0.05, "l2": 0.2}


def attacked(threat: Threat, model, images, labels, eps: float | None = None, seed=3) -> list[torch.Tensor]:
    """All that the attack can be asked for: at one strength, the closest images, and along a grid."""
    eps = eps or EPS[threat.norm]
    found = [threat(model, images, labels, eps, seed)]
    if threat.minimal:
        found += closest(threat, model, images, labels, seed)
    if threat.curve is not None:
        found.append(threat.perturb_at_strengths(model, images, labels, [eps / 2, eps], [eps], seed))
    return found


# --- memory ---------------------------------------------------------------------------------------


class Full(nn.Module):
    """A model that runs out of memory on more than `room` images, or `back` when differentiated."""

    def __init__(self, room: int, back: int) -> None:
        super().__init__()
        self.inner = smooth(5)
        self.room, self.back, self.sizes = room, back, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits = self.inner(images)
        if logits.requires_grad and len(images) > self.back:
            logits.register_hook(self.fail)
        return logits

    @staticmethod
    def fail(_gradient: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


@every
@pytest.mark.parametrize("limits", [(5, 1000), (1000, 3)], ids=["forward", "backward"])
def test_an_attack_goes_on_where_memory_runs_out(threat, limits):
    full = Full(*limits)
    images, labels = images_for(full.inner)
    expected = attacked(threat, full.inner, images, labels)
    for found, wanted in zip(attacked(threat, full, images, labels), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert 12 in full.sizes
    assert limits[0] > 12 or min(full.sizes) < 6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_memory_that_ran_out_is_known_by_many_names(error):
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("CUDA error: out of memory"))


@every
def test_one_sample_that_does_not_fit_is_an_error(threat):
    full = Full(0, 0)
    images, labels = images_for(full.inner, 3)
    with pytest.raises(torch.OutOfMemoryError):
        threat(full, images, labels, EPS[threat.norm], 0)


# --- modes, flags, gradients ----------------------------------------------------------------------


class Normed(nn.Module):
    """In training mode, but for one layer that its owner has frozen; raises at query number `last`."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.first, self.second, self.inner = nn.BatchNorm2d(1), nn.BatchNorm2d(1), smooth(5).float()
        self.drop, self.last, self.asked = nn.Dropout(0.5), last, 0
        self.inner.requires_grad_(True)
        self.inner[1].bias.requires_grad_(False)
        self.inner[1].weight.grad = torch.ones_like(self.inner[1].weight)
        self.train()
        self.second.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not any(module.training for module in self.modules())
        bias = self.inner[1].bias
        assert all(p.requires_grad == (p is not bias) for p in self.parameters()), "left as they are"
        self.asked += 1
        if self.asked == self.last:
            raise KeyError("no logits today")
        return self.inner(self.drop(self.second(self.first(images))))


@every
@pytest.mark.parametrize("last", [None, 1, 3], ids=["sound", "at once", "midway"])
def test_a_model_is_asked_in_eval_mode_and_left_as_it_was(threat, last):
    model = Normed(last)
    images = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if last is None or (last == 3 and threat.name.startswith("fgsm")):  # which ask twice
        attacked(threat, model, images, model_labels(model, images))
    else:
        with pytest.raises(KeyError, match="no logits today"):
            attacked(threat, model, images, model_labels(model, images))
    assert model.asked >= min(last or 2, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, module in model.named_modules() if not module.training] == ["second"]
    bias, weight = model.inner[1].bias, model.inner[1].weight
    assert all(p.requires_grad == (p is not bias) for p in model.parameters())
    assert all(p.grad is None for p in model.parameters() if p is not weight)
    assert torch.equal(weight.grad, torch.ones_like(weight))


def model_labels(model: Normed, images: torch.Tensor) -> torch.Tensor:
    """What the model predicts in eval mode, so that no sample is wrong from the start."""
    with torch.no_grad():
        centred = images / (1 + model.first.eps)
        return model.inner(centred).argmax(1)


# --- what is not finite ---------------------------------------------------------------------------


def poisoned(kind: str) -> nn.Module:
    """Sound at the images, which are 0.5 everywhere; what is `kind` elsewhere or in the gradient is not."""

    def fault(logits, images):
        if kind == "nan gradient":  # 0 times the derivative of a root at 0
            return logits + (images - images).flatten(1).sqrt().sum(1, keepdim=True)
        if kind == "infinite gradient":
            u = images.flatten(1).sum(1, keepdim=True)
            weight = torch.arange(3.0).to(images)
            return logits + weight * (u - u.detach()).sqrt()
        worth = torch.nan if kind == "nan logits" else torch.inf
        bad = ((images - 0.5).abs().flatten(1).amax(1) > 0.01)[:, None]
        return logits + torch.where(bad, worth, 0.0)

    model = stubs.Faulty((1, 4, 4), 3, fault).eval()
    with torch.no_grad():  # the first class leads by far more than 0.01 can undo
        model.head.weight.copy_(torch.linspace(-1, 1, 48).view(3, 16).roll(1, 0))
        model.head.bias.zero_()
    return model


KINDS = ("nan logits", "infinite logits", "nan gradient", "infinite gradient")


@every
@pytest.mark.parametrize("how", ["bare", "deferred", "strict"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_an_error_and_not_robustness(threat, kind, how):
    model, images = poisoned(kind), torch.full((4, 1, 4, 4), 0.5)
    labels = model(images).argmax(1)
    if how != "bare":
        model = CheckedModel(model, 3, deferred=how == "deferred")
    if kind.endswith("gradient") and not threat.needs_gradient:
        assert bool(threat(model, images, labels, 0.1, 0).isfinite().all()), "it asks for no gradient"
        return
    with pytest.raises(NonFinite, match="NaN or infinite"):
        threat(model, images, labels, 1.0, 0)


def test_the_infinite_gradient_is_infinite_and_not_nan():
    x = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    logits = poisoned("infinite gradient")(x)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert bool(gradient.isinf().all())
    assert bool(logits.isfinite().all())


@every
@pytest.mark.parametrize("worth", [torch.nan, torch.inf])
def test_an_image_that_is_not_finite_is_an_error_whatever_the_model_makes_of_it(threat, worth):
    model, images = smooth(3), torch.rand(3, 1, 6, 6).double()
    images[1, 0, 2, 2] = worth
    with pytest.raises(NonFinite, match="pixels"):
        threat(lambda x: model(x.nan_to_num(0.5, 0.5, 0.5)), images, torch.zeros(3).long(), 0.1, 0)


# --- other people's backward passes ---------------------------------------------------------------


class ByParameters(torch.autograd.Function):
    """A linear map whose backward pass differentiates by its weight too, as torchdyn's adjoint does."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = (tensor.detach().requires_grad_(True) for tensor in ctx.saved_tensors)
        weight.requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            return torch.autograd.grad(x @ weight, (x, weight), gradient)


class OtherLayout(torch.autograd.Function):
    """Nothing but a gradient that is laid out channels last, as convolutions with such weights return it."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        found = gradient.contiguous(memory_format=torch.channels_last)
        assert not found.is_contiguous()
        return found


class Backward(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, generator = kind, torch.Generator().manual_seed(4)
        self.weight = nn.Parameter(torch.randn(12, 3, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.kind == "channels last":
            images = OtherLayout.apply(images)
        flat = images.flatten(1)
        return torch.tanh(
            ByParameters.apply(flat, self.weight) if self.kind == "adjoint" else flat @ self.weight
        )


@every
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("kind", ["adjoint", "channels last"])
def test_any_backward_pass_gives_what_a_plain_one_gives(threat, kind, deferred):
    """`deferred` is how a GPU is asked."""
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    labels = Backward("")(images).argmax(1)
    found, expected = (
        threat(CheckedModel(Backward(k), 3, deferred=deferred), x, labels, EPS[threat.norm], 0)
        for k, x in ((kind, images.contiguous(memory_format=torch.channels_last)), ("", images))
    )
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


# --- queries --------------------------------------------------------------------------------------


class Graphs(nn.Module):
    """Counts samples asked about with a graph and without; its parameters could be trained."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner = smooth(classes).requires_grad_(True)
        self.graphs = self.others = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        self.graphs += len(images) * logits.requires_grad
        self.others += len(images) * (not logits.requires_grad)
        return logits


@every
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_graph_is_built_only_where_a_gradient_is_taken(threat, grad):
    """At a strength at which nothing breaks; a caller who wants no gradients is no obstacle."""
    model = Graphs(10)
    images, labels = images_for(model.inner)
    with torch.set_grad_enabled(grad):
        threat(model, images, labels, 1e-6, 0)
    forwards, backwards = threat.queries(threat.parameters)
    assert (model.graphs, model.others) == (12 * backwards, 12 * (forwards - backwards))


@every
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_queries_are_those_declared_for_any_number_of_classes(threat, classes):
    model = smooth(classes)
    images, labels = images_for(model, 5)
    queried = CheckedModel(model, classes)
    cut(threat, targets=9, steps=3)(queried, images, labels, 1e-6, 0)
    forwards, backwards = threat.queries(cut(threat, targets=9, steps=3).parameters)
    assert (queried.forwards, queried.backwards) == (5 * forwards, 5 * backwards)


# --- classes, models, batches ---------------------------------------------------------------------


@every
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_a_far_boundary_is_crossed_within_the_budget(threat, classes):
    model = smooth(classes)
    images, labels = images_for(model, 6)
    strength = 0.6 if threat.norm == "linf" else 3.0
    found = cut(threat, steps=20, queries=80, rounds=4, directions=8)(model, images, labels, strength, 0)
    assert float(violation(found, images, strength, threat.norm).max()) <= BUDGET_TOLERANCE * strength
    assert found.dtype == images.dtype
    broken = int((model(found).argmax(1) != labels).sum())
    assert broken >= (6 if threat.name != "spsa-linf" else 2)


@every
def test_a_single_sample_and_none_at_all(threat):
    model = smooth(4)
    images, labels = images_for(model, 1)
    for found in attacked(threat, model, images, labels, seed=[7]):
        assert found.shape[-4:] == images.shape or found.shape == (1,)
        assert bool(found.isfinite().all()) or found.dtype == torch.float64
    one, *rest = attacked(threat, None, images[:0], labels[:0])  # and the model is not asked
    assert one.shape == (0, 1, 6, 6)
    assert one.dtype == images.dtype
    if threat.minimal:
        assert [tensor.shape for tensor in rest[:2]] == [(0, 1, 6, 6), (0,)]
    if threat.curve is not None:
        assert rest[-1].shape == (2, 0, 1, 6, 6)


@every
def test_a_model_without_parameters_is_attacked_like_a_module(threat):
    def parameter_free(images):
        flat = images.flatten(1)
        return torch.stack([flat.sum(1), flat.square().sum(1), flat.amax(1)], 1)

    class Module(nn.Module):
        def forward(self, images):
            return parameter_free(images)

    images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = parameter_free(images).argmax(1)
    bare = attacked(threat, parameter_free, images, labels)
    for found, wanted in zip(bare, attacked(threat, Module(), images, labels), strict=True):
        assert torch.equal(found, wanted)
    if not threat.minimal and not threat.name.startswith(("curve", "fab")):  # which keep what crosses alone
        assert not torch.equal(bare[0], images)


@every
def test_a_model_in_double_precision_is_asked_in_double_precision(threat):
    """Behind the harness's counter: images stay float32, as do the perturbed ones."""
    model = smooth(5)
    images, _ = images_for(model)
    images = images.float()
    queried = CheckedModel(model, 5)
    labels = queried(images).argmax(1)
    found, *_ = attacked(threat, queried, images, labels)
    assert found.dtype == torch.float32
    assert float(violation(found, images, EPS[threat.norm], threat.norm).max()) <= BUDGET_TOLERANCE
    single = threat(smooth(5).float(), images, labels, EPS[threat.norm], 3)
    left = [int((queried(x).argmax(1) == labels).sum()) for x in (found, single)]
    assert abs(left[0] - left[1]) <= 1
