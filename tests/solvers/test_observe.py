"""Solvers are seen in a forward pass, whatever the library and however it is called; no number changes."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import foreign_models as foreign
import pytest
import stubs
import torch
import torchdiffeq
import torchvision
from foreign_models import IMAGES, build
from hypothesis import given
from hypothesis import strategies as st
from robustode.attacks import THREATS
from robustode.bench.conformance.run import run_check
from robustode.bench.evaluation.solver_transfer import evaluate_solver_transfer
from robustode.bench.runtime.checked_model import CheckedModel
from robustode.bench.solvers import observe as module
from robustode.bench.solvers.changed_model import ChangedModel, solved_as_forward, solver_surrogates
from robustode.bench.solvers.column_flow import CannotFollow, column_flows
from robustode.bench.solvers.evaluations import evaluations_times_images
from robustode.bench.solvers.observe import count_nfe, is_compiled, observe, solvers_seen
from robustode.bench.solvers.recording import Observer
from robustode.bench.solvers.solver_call import CannotSolveOtherwise, SolverChange
from robustode.bench.solvers.without_solver import known_without_solver
from robustode.bench.training.provenance import solver_names
from robustode.models import ModelSpec
from torch import nn
from torch.nn.utils import parametrizations

pytestmark = pytest.mark.filterwarnings("default")  # those of torchdyn and torchode at import
NAMES = list(foreign.MODELS)
SEEN = {
    "odeint": "torchdiffeq dopri5 rtol=0.001 atol=0.0001",
    "adjoint": "torchdiffeq dopri5, adjoint rtol=0.001 atol=0.0001",
    "partial": "torchdiffeq bosh3 rtol=0.001 atol=0.001",
    "many times": "torchdiffeq euler 4 steps",
    "step size": "torchdiffeq rk4 4 steps",
    "perturbed": "torchdiffeq midpoint 4 steps",
    "adjoint grid": "torchdiffeq rk4, adjoint 4 steps",
    "backwards": "torchdiffeq heun2 4 steps",
    "tuple": "torchdiffeq dopri5 rtol=0.001 atol=0.001",
    "tuple adjoint": "torchdiffeq dopri5, adjoint rtol=0.001 atol=0.001",
    "adams": "torchdiffeq explicit_adams 8 steps",
    "twice": "torchdiffeq euler 1 steps; torchdiffeq rk4, adjoint 1 steps",
    "nested": "torchdiffeq dopri5 rtol=0.001 atol=0.001",
    "torchdyn": "torchdyn dopri5 rtol=0.001 atol=0.001",
    "torchdyn tsit5": "torchdyn tsit5 rtol=0.001 atol=0.001",
    "torchdyn euler": "torchdyn euler 5 steps",
    "torchdyn adjoint": "torchdyn dopri5, adjoint rtol=0.001 atol=0.001",
    "torchdyn interpolated": "torchdyn rk4, adjoint 3 steps",
    "torchdyn function": "torchdyn rk4 4 steps",
    "torchode": "torchode dopri5 rtol=0.001 atol=0.0001",
    "torchode points": "torchode dopri5 rtol=0.001 atol=0.0001",
    "torchode fixed": "torchode heun 4 steps",
    "torchode backsolve": "torchode dopri5, adjoint rtol=0.001 atol=0.0001",
    "torchode joint": "torchode dopri5, adjoint rtol=0.001 atol=0.0001",
}
EXACT = SolverChange(method="dopri5", rtol=1e-9, atol=1e-9)


def made(name: str) -> nn.Module:
    for library in ("torchdyn", "torchode"):
        if name.startswith(library):
            pytest.importorskip(library)
    return build(foreign.MODELS[name])


def counted(model: nn.Module) -> int:
    """Evaluations of all fields that count themselves."""
    return sum(m.nfe for m in model.modules() if isinstance(m, foreign.Field))


def slope(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    images = IMAGES.clone().requires_grad_(True)
    logits = model(images)
    return logits.detach(), torch.autograd.grad(logits.sum(), images)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_solver_is_seen_and_its_evaluations_are_counted(name):
    model = made(name)
    model(IMAGES)
    before = counted(model)
    calls = observe(model, IMAGES)
    assert "; ".join(map(str, calls)) == SEEN[name]
    if not name.startswith("tuple"):
        assert sum(call.evaluations for call in calls) == counted(model) - before > 0


@pytest.mark.parametrize("name", NAMES)
def test_no_number_changes_while_it_is_looked_at_and_backward_passes_are_not_counted(name):
    model = made(name)
    plain = slope(model)
    nfe = count_nfe(model, IMAGES)
    observer = Observer()
    with solvers_seen(observer):
        seen = slope(model)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert sum(count for _, count in observer.solves) == nfe
    assert all(torch.equal(a, b) for a, b in zip(plain, slope(model), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_solved_otherwise_and_the_finer_the_nearer_to_the_flow(name):
    model = made(name).double()
    try:
        own = model(IMAGES.double())
    except Exception:
        model, own = model.float(), None
    images = IMAGES if own is None else IMAGES.double()
    with torch.no_grad():
        fine = SolverChange(method="rk4", steps=256)
        exact = ChangedModel(model, fine if own is None else EXACT)(images)
        surrogates = solver_surrogates(model, images)
        errors = {grid: float((other(images) - exact).abs().max()) for grid, other in surrogates.items()}
    assert errors["rk4-64"] <= errors["rk4-16"] + 1e-6
    assert errors["rk4-64"] < 1e-5 < errors["euler-64"] < errors["euler-16"] < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_surrogates_are_differentiated_through_their_steps(name):
    model = made(name)
    surrogate = solver_surrogates(model, IMAGES)["rk4-16"]
    _, gradient = slope(surrogate)
    step, direction = 1e-2, torch.sign(gradient)
    with torch.no_grad():
        ends = [surrogate(IMAGES + sign * step * direction).sum() for sign in (1, -1)]
    wanted = float(ends[0] - ends[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize(
    "settings", [{"rtol": 1e-5, "atol": 1e-5}, {"method": "euler", "options": {"step_size": 1 / 16}}]
)
def test_a_solve_that_the_backward_pass_repeats_is_changed_too(settings):
    plain, again = (
        build(partial(foreign.Diffeq, **settings)),
        build(partial(foreign.Checkpointed, **settings)),
    )
    for change in (SolverChange(method="rk4", steps=16), SolverChange(adjoint=True)):
        gradients = []
        for model in (plain, again):
            other = ChangedModel(model, change)
            with solved_as_forward(other):
                gradients.append(slope(other)[1])
        assert torch.equal(*gradients)
        assert not torch.equal(slope(plain)[1], gradients[0])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_the_other_way_are_near(name):
    model = made(name)
    adjoint = any(call.adjoint for call in observe(model, IMAGES))
    other = ChangedModel(model, SolverChange(adjoint=not adjoint))
    (logits, own), (found, gradient) = slope(model), slope(other)
    torch.testing.assert_close(found, logits, rtol=0, atol=2e-3)
    assert not torch.equal(gradient, own)
    cosine = torch.nn.functional.cosine_similarity(own.flatten(1), gradient.flatten(1))
    assert float(cosine.min()) > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_another_tolerance_changes_adaptive_solves_alone(name):
    model = made(name)
    adaptive = any(call.adaptive for call in observe(model, IMAGES))
    loose = ChangedModel(model, SolverChange(rtol=1e-1, atol=1e-1, only="adaptive"))
    tight = ChangedModel(model, SolverChange(rtol=1e-6, atol=1e-6, only="adaptive"))
    finer = ChangedModel(model, SolverChange(refine=4, only="fixed"))
    nfe = count_nfe(model, IMAGES)
    if adaptive:
        assert count_nfe(tight, IMAGES) > count_nfe(loose, IMAGES)
        assert torch.equal(finer(IMAGES), model(IMAGES))
    else:
        assert torch.equal(loose(IMAGES), model(IMAGES))
        assert count_nfe(finer, IMAGES) > nfe if name == "adams" else count_nfe(finer, IMAGES) == 4 * nfe


@pytest.mark.parametrize("name", NAMES)
def test_a_solve_is_followed_step_by_step_in_columns(name):
    model = made(name)
    flows = column_flows(model, IMAGES)
    for flow in flows:
        state = flow.states
        assert state.shape[1] == len(IMAGES)
        assert flow.final_time == pytest.approx(1.0)
        for field, step in zip(flow.fields, flow.steps, strict=True):
            assert field(state).shape == state.shape
            state = step(state)
    if len(flows) == 1 and not name.startswith("tuple"):
        with torch.no_grad():
            torch.testing.assert_close(model.head(state.T), model(IMAGES), rtol=0, atol=1e-2)


# --- what is not believed, and what cannot be seen ----------------------------------------------


def test_a_count_that_is_never_set_back_is_not_believed():
    """As torchdiffeq's example on MNIST: four evaluations, of which the field remembers all."""
    model = build(partial(foreign.Diffeq, method="rk4"))
    queried = CheckedModel(model, foreign.CLASSES)
    for _ in range(124):
        queried(IMAGES)
    assert counted(model) == 496
    assert queried.nfe == 4


@pytest.mark.parametrize("solve", [torchdiffeq.odeint, torchdiffeq.odeint_adjoint])
def test_backward_passes_add_nothing(solve):
    queried = CheckedModel(build(partial(foreign.Diffeq, solve, method="rk4")), foreign.CLASSES)
    for _ in range(3):
        images = IMAGES.clone().requires_grad_(True)
        queried(images).sum().backward()
    assert (queried.nfe, queried.backwards) == (4, 3 * len(IMAGES))


def test_evaluations_of_two_solves_are_added_and_so_are_those_inside_a_field():
    class Inner(foreign.Field):
        """Its derivative is itself the end of a flow."""

        def __init__(self):
            super().__init__()
            self.flow = foreign.Diffeq(method="euler")

        def forward(self, t, x):
            return self.flow(super().forward(t, x))

    def nested():
        flow = foreign.Diffeq(method="rk4")
        flow.field = Inner()
        return flow

    calls = observe(build(nested), IMAGES)
    assert sorted((call.method, call.evaluations) for call in calls) == [("euler", 1)] * 4 + [("rk4", 4)]


class Apart(nn.Module):
    """Solves for parts of a batch, one after the other."""

    def __init__(self, size, *, batched=True):
        super().__init__()
        self.flow, self.size, self.batched = (
            foreign.Diffeq(method="rk4", options={"step_size": 0.25}),
            size,
            batched,
        )

    def forward(self, x):
        if not self.batched:
            return torch.stack([self.flow(row) for row in x])
        return torch.cat([self.flow(part) for part in x.split(self.size)])


@pytest.mark.parametrize(
    "flow", [partial(Apart, 1), partial(Apart, 2), partial(Apart, 4), partial(Apart, 1, batched=False)]
)
def test_evaluations_do_not_grow_with_the_batch_where_its_parts_are_solved_for_apart(flow):
    model = build(flow)
    queried = CheckedModel(model, foreign.CLASSES)
    for count in (1, 2, 3, 4, 6):
        assert count_nfe(model, IMAGES[:count]) == 16
        with torch.no_grad():
            queried(IMAGES[:count])
    assert queried.nfe == 16
    two = build(lambda: nn.Sequential(flow(), foreign.Diffeq(method="euler")))
    assert count_nfe(two, IMAGES) == 17


@given(st.lists(st.integers(1, 50), max_size=6), st.integers(1, 9))
def test_evaluations_of_solves_for_the_whole_batch_are_added(counts, images):
    total = evaluations_times_images([(images, count) for count in counts], images)
    assert total == (images * sum(counts) if counts else None)


def test_a_state_that_is_no_part_of_the_batch_counts_as_a_whole():
    assert evaluations_times_images([(3, 7)], 5) == 35  # weights of the field, say
    assert evaluations_times_images([(12, 7)], 5) == 35
    assert evaluations_times_images([(5, 4), (3, 7)], 5) == 55
    assert evaluations_times_images([(1, 7), (1, 9)], 1) == 16


class Copied(foreign.HandWritten):
    """Solves by a copy of a library under another name."""


@pytest.mark.parametrize("flow", [foreign.HandWritten, Copied])
def test_what_steps_itself_is_not_seen_and_not_said_to_have_no_solver(flow):
    model = build(flow)
    assert observe(model, IMAGES) == []
    assert count_nfe(model, IMAGES) is None
    assert not known_without_solver(model)
    assert solver_surrogates(model, IMAGES) == {}
    with pytest.raises(CannotFollow, match="no solver was seen"):
        column_flows(model, IMAGES)


def test_layers_of_known_libraries_solve_no_ode_unless_their_forward_is_another():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(8, 3), nn.ReLU())
    assert known_without_solver(layers)
    layers[1].forward = foreign.HandWritten().forward
    assert not known_without_solver(layers)


class OwnWeight(nn.Module):
    """Steps itself, with a weight that torch replaces its class for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, x):
        for _ in range(4):
            x = x + torch.tanh(x @ self.weight) / 4
        return x


def steps(x):
    return x + torch.tanh(x)


def parametrised():
    return parametrizations.orthogonal(OwnWeight(), "weight")


def hooked():
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda module, args, output: steps(output))
    return layer


def hooked_before():
    layer = nn.Linear(8, 8)
    layer.register_forward_pre_hook(lambda module, args: (steps(*args),))
    return layer


def given_a_function():
    return nn.TransformerEncoderLayer(8, 2, activation=steps)


@pytest.mark.parametrize("make", [parametrised, hooked, hooked_before, given_a_function])
def test_code_that_stands_in_a_known_layer_is_seen(make):
    assert not known_without_solver(nn.Sequential(make()))


def test_layers_with_torchs_own_parametrisations_solve_no_ode():
    assert known_without_solver(
        nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(8, 8)),
            nn.utils.spectral_norm(nn.Linear(8, 8)),
            nn.TransformerEncoderLayer(8, 2, activation=nn.functional.gelu),
            torchvision.models.mobilenet_v3_small(),
        )
    )


def test_a_solver_that_is_called_in_training_alone_is_not_seen():
    class Trains(foreign.Diffeq):
        def forward(self, x):
            return super().forward(x) if self.training else x

    model = build(partial(Trains, method="euler"))
    model.train()
    assert observe(model, IMAGES) == []
    assert model.flow.training


def test_a_compiled_model_is_looked_into_without_its_compilation():
    model = build(partial(foreign.Diffeq, method="euler"))
    compiled = torch.compile(model, backend="eager")
    inside = nn.Sequential(torch.compile(model, backend="eager"))
    for each in (compiled, inside):
        assert [str(call) for call in observe(each, IMAGES)] == ["torchdiffeq euler 1 steps"]
        queried = CheckedModel(each, foreign.CLASSES)
        assert torch.equal(queried(IMAGES), each(IMAGES))
        assert queried.nfe == 1
        assert set(solver_surrogates(each, IMAGES)) == {"euler-16", "euler-64", "rk4-16", "rk4-64"}


def _solved(field, x):
    return torchdiffeq.odeint(field, x, torch.tensor([0.0, 1.0]), method="euler")[-1]


_compiled_globally = torch.compile(_solved, backend="eager")


class GlobalFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = foreign.Field()

    def forward(self, x):
        return _compiled_globally(self.field, x)


def test_a_compiled_function_that_a_forward_names_is_seen():
    model = build(GlobalFunction)
    assert is_compiled(model)
    assert not is_compiled(build(foreign.Diffeq))
    assert count_nfe(model, IMAGES) == 1


def test_a_compiled_model_without_an_answer_for_one_image_answers_the_others():
    class GivesUp(nn.Module):
        def forward(self, x):
            if bool((x > 0.99).any()):
                raise AssertionError("underflow in dt 0.0")
            return x.flatten(1)[:, :3]

    flow = foreign.Diffeq(method="rk4")
    flow.field = foreign.Field(3)
    model = nn.Sequential(GivesUp(), flow)
    model.compile(backend="eager")
    images = IMAGES.clone().clamp(max=0.9)
    images[2, 0, 0, 0] = 1.0
    queried = CheckedModel(model, foreign.CLASSES, per_sample=True)
    with torch.no_grad():
        logits = queried(images)
    assert logits.isnan().any(1).tolist() == [False, False, True, False, False, False]
    assert queried.nfe == 4


def test_an_event_can_be_solved_at_another_tolerance_and_on_no_other_grid():
    class Event(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = foreign.Field()

        def forward(self, x):
            _, path = torchdiffeq.odeint_event(
                self.field, x, torch.zeros(()), event_fn=lambda t, y: t - 0.5, rtol=1e-3, atol=1e-3
            )
            return path[-1]

    model = build(Event)
    (call,) = observe(model, IMAGES)
    assert (call.method, call.grid) == ("dopri5", None)
    assert call.evaluations > 0
    assert count_nfe(ChangedModel(model, SolverChange(rtol=1e-6, atol=1e-6)), IMAGES) > call.evaluations
    with pytest.raises(CannotSolveOtherwise, match="event"):
        ChangedModel(model, SolverChange(method="rk4", steps=16))(IMAGES)


def test_scipys_solvers_are_seen():
    model = build(
        partial(foreign.Diffeq, method="scipy_solver", options={"solver": "RK45"}, rtol=1e-3, atol=1e-3)
    )
    with torch.no_grad():
        (call,) = observe(model, IMAGES)
    assert (call.method, call.adaptive, call.evaluations > 0) == ("scipy_solver", True, True)
    assert list(solver_surrogates(model, IMAGES)) == ["euler-16", "euler-64", "rk4-16", "rk4-64"]


# --- nothing stays behind -----------------------------------------------------------------------


def codes() -> list[object]:
    return [one.function.__code__ for one in module._functions.values()]


def test_the_libraries_are_as_they_were_after_an_error_too():
    observe(build(partial(foreign.Diffeq, method="euler")), IMAGES)
    before = codes()

    class Fails(foreign.Field):
        def forward(self, t, x):
            assert codes() != before
            raise ValueError("no")

    def fails():
        flow = foreign.Diffeq(method="euler")
        flow.field = Fails()
        return flow

    for asked in (partial(observe, build(fails)), ChangedModel(build(fails), EXACT)):
        with pytest.raises(ValueError, match="no"):
            asked(IMAGES)
        assert codes() == before


def test_two_threads_see_their_own_solves():
    models = [build(partial(foreign.Diffeq, method=method)) for method in ("euler", "rk4")]
    found: dict[int, set[int | None]] = {0: set(), 1: set()}

    def ask(which: int) -> None:
        for _ in range(50):
            found[which].add(count_nfe(models[which], IMAGES))

    threads = [threading.Thread(target=ask, args=(which,)) for which in (0, 1)]
    before = torchdiffeq.odeint.__code__
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: {1}, 1: {4}}
    assert torchdiffeq.odeint.__code__ is before


class InAThread(nn.Module):
    """Solves twice, once in a worker thread that it keeps."""

    def __init__(self):
        super().__init__()
        self.flows = nn.ModuleList([foreign.Diffeq(method="euler"), foreign.Diffeq(method="rk4")])

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return self.flows[0](x) + pool.submit(self.flows[1], x).result()


def test_a_solve_in_a_thread_of_the_model_is_counted_and_changed():
    model = build(InAThread)
    assert count_nfe(model, IMAGES) == 5
    queried = CheckedModel(model, foreign.CLASSES)
    queried(IMAGES)
    assert queried.nfe == 5
    assert count_nfe(ChangedModel(model, SolverChange(method="euler", steps=3)), IMAGES) == 6


def test_random_states_and_modes_are_as_they_were():
    model = nn.Sequential(build(partial(foreign.Diffeq, method="euler")), nn.BatchNorm1d(3), nn.Dropout())
    model.train()
    before = torch.get_rng_state(), model[1].running_mean.clone()
    observe(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(model[1].running_mean, before[1])
    assert model.training


def test_no_library_is_imported_that_the_model_does_not_import(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] in ("torchdyn", "torchode")]:
        monkeypatch.delitem(sys.modules, name)
    observe(build(partial(foreign.Diffeq, method="euler")), IMAGES)
    assert not {"torchdyn", "torchode"} & set(sys.modules)


# --- what is said of a model --------------------------------------------------------------------


class FailsAtTheFirst(nn.Module):
    """Has no answer for the first of `IMAGES`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        if torch.equal(images[0], IMAGES[0]):
            raise AssertionError("underflow in dt 0.0")
        return self.model(images)


def test_the_solver_of_another_library_is_named_without_what_weights_and_images_decide():
    assert solver_names(build(foreign.MODELS["step size"]), IMAGES) == "torchdiffeq rk4"
    assert solver_names(build(foreign.MODELS["odeint"]), IMAGES) == SEEN["odeint"]
    assert solver_names(build(foreign.HandWritten), IMAGES) is None
    assert solver_names(FailsAtTheFirst(build(foreign.MODELS["odeint"])), IMAGES) == SEEN["odeint"]

    class Fails(nn.Module):
        def forward(self, images):
            raise ValueError("no")

    assert solver_names(Fails(), IMAGES) is None


@pytest.mark.parametrize(("flow", "told"), [(nn.Identity, ""), (foreign.Diffeq, "solver is called: torch")])
def test_the_claim_of_solving_no_ode_is_measured(flow, told):
    def made(shape, classes):
        return foreign.Classifier(flow(), 64, classes)

    result = run_check(ModelSpec(name="claims", build=made, claims=frozenset({"no_ode"})), "claim:no_ode")
    assert result.passed is not bool(told)
    assert told in (result.error or "")


def test_the_costs_of_samples_and_the_fixed_cost_of_a_claim_are_seen_in_every_library():
    def made(shape, classes):
        return foreign.Classifier(foreign.Diffeq(method="rk4"), 64, classes)

    spec = ModelSpec(name="claims", build=made, claims=frozenset({"fixed_step"}))
    assert run_check(spec, "claim:fixed_step").passed


def test_solver_transfer_attacks_a_model_of_another_library_through_its_surrogates():
    model = build(foreign.MODELS["adjoint"])
    split = stubs.split_of(IMAGES, model(IMAGES).argmax(1))
    threat = THREATS.get("solver-transfer-linf").configure(steps=2)
    cell = stubs.cell_for(threat, 0.3, len(IMAGES), norm="linf")
    record = evaluate_solver_transfer(
        cell, model, split, threat, num_classes=foreign.CLASSES, device=stubs.CPU, environment={}
    )
    scored = {name for name in record.measures if name.startswith("surrogate.")}
    assert scored == {f"surrogate.{grid}.accuracy" for grid in ("euler-16", "euler-64", "rk4-16", "rk4-64")}


def test_a_library_that_is_imported_in_the_pass_itself_is_seen():
    pytest.importorskip("torchdyn")

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = foreign.Field()

        def forward(self, x):
            from torchdyn.numerics import odeint

            return odeint(self.field, x, torch.linspace(0, 1, 3), "euler")[1][-1]

    model = build(Late)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("torchdyn")}
    try:
        (call,) = observe(model, IMAGES)
    finally:
        for name in [name for name in sys.modules if name.startswith("torchdyn")]:
            del sys.modules[name]
        sys.modules.update(hidden)
    assert str(call) == "torchdyn euler 2 steps"
