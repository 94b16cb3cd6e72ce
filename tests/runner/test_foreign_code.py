"""What foreign code changes is put back and named: no model changes another's numbers, no caller ours."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stubs
import torch
from robustode import ForeignCodeWarning, evaluate
from robustode._errors import UntrainedModelWarning
from robustode.attacks import Threat
from robustode.attacks.core.model_call import call_model
from robustode.bench.config.preset import Recipe, load_preset
from robustode.bench.config.run_request import RunRequest
from robustode.bench.data import DATASETS, DatasetSource, load_data
from robustode.bench.evaluation.accuracy import evaluate_cell
from robustode.bench.plugins.model_file import resolve_model
from robustode.bench.records.store import Store
from robustode.bench.runner.run import run_plan
from robustode.bench.runtime.announcements import sentence, telling
from robustode.bench.runtime.foreign_code import asking, foreign_code
from robustode.bench.training.check_statements import check_statements
from robustode.bench.training.load_trained import trained_model
from robustode.bench.training.train import build_model, train
from robustode.models import ODEBlock, PixelNetwork, Solver, TanhField, get_ode_backend, set_ode_backend
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("registries")


def everything_global() -> dict[str, Any]:
    """What foreign code must leave as it was."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "precision": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
        "denormals": (torch.tensor(1e-40, device="cpu") * 1.0).item(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state(legacy=False)),
        "random": random.getstate(),
        "numpy errors": np.geterr(),
        "filters": sorted(map(str, warnings.filters)),
        "folder": os.getcwd(),
        "streams": (sys.stdout, sys.stderr),
        "bytecode": sys.dont_write_bytecode,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)],
        "recursion": sys.getrecursionlimit(),
        "gc": gc.isenabled(),
        "backend": get_ode_backend(),
        "functions": (nn.functional.cross_entropy, nn.functional.relu, nn.Linear.forward, torch.Tensor.tanh),
        "variables": {name: os.environ[name] for name in os.environ if name.startswith("ROBUSTODE")},
    }


CHANGES = {
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "the default device": lambda: torch.set_default_device("meta"),
    "grad mode": lambda: torch._C._set_grad_enabled(False),
    "autocast on the CPU": lambda: torch.set_autocast_enabled("cpu", True),
    "the number of threads": lambda: torch.set_num_threads(3),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "the precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "the benchmark flag of cuDNN": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "the fast path of transformers": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "the flushing of denormals": lambda: torch.set_flush_denormal(True),
    "the filters of all warnings": lambda: warnings.simplefilter("ignore"),
    "the working directory": lambda: os.chdir("/"),
    "the standard output": lambda: setattr(sys, "stdout", sys.stderr),
    "numpy's handling of errors": lambda: np.seterr(all="raise"),
    "the global hooks of modules": lambda: nn.modules.module.register_module_forward_hook(
        lambda module, images, output: output * 2
    ),
    "robustode's ODE backend": lambda: set_ode_backend("torchdiffeq"),
    "ROBUSTODE variables of the environment": lambda: os.environ.update(ROBUSTODE_DATA="/nowhere"),
    "signal handlers": lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
    "the recursion limit": lambda: sys.setrecursionlimit(4321),
    "garbage collection": gc.disable,
    "the writing of bytecode": lambda: setattr(sys, "dont_write_bytecode", False),
    "functions of torch, numpy or torchdiffeq": lambda: (
        setattr(nn.functional, "cross_entropy", lambda logits, labels: logits.sum()),
        setattr(nn.Linear, "forward", lambda self, x: x),
        setattr(torch.Tensor, "tanh", lambda x: x),
        setattr(nn.functional, "relu", torch.tanh),  # a function of torch, in another's place
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("raises", [False, True])
def test_what_a_block_changes_is_put_back_and_named_once(name, raises):
    before, lines = everything_global(), []
    with telling(lambda *changed: lines.append(sentence(*changed))):
        for _ in range(2):
            with contextlib.suppress(ZeroDivisionError), foreign_code("net.py", seed=3):
                CHANGES[name]()
                torch.rand(3), np.random.rand(3), random.random()
                assert not raises or 1 / 0
    assert everything_global() == before
    (line,) = lines
    assert line.startswith(f"net.py changed {name}, put back")


def test_what_a_block_draws_follows_from_its_seed_and_moves_nothing():
    def draw(seed: int) -> list[float]:
        with foreign_code("net.py", seed=seed):
            return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    before = everything_global()
    assert draw(1) == draw(1)
    assert len({*draw(1), *draw(2)}) == 6
    assert everything_global() == before


@pytest.mark.parametrize(
    "name", ["the default dtype", "the default device", "grad mode", "the number of threads"]
)
def test_a_forward_pass_changes_nothing_for_the_next_line(name):
    class Net(stubs.Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            CHANGES[name]()
            return logits

    net, images, lines = Net((1, 2, 2), 3), torch.rand(2, 1, 2, 2), []
    before = everything_global()
    with telling(lambda *changed: lines.append(sentence(*changed))), foreign_code("net.py"):
        inside = everything_global()
        call_model(net, images, 3)
        assert everything_global() == inside
    assert everything_global() == before
    assert [line.partition(",")[0] for line in lines] == [f"net.py changed {name}"]


@pytest.mark.parametrize("name", ["the default dtype", "the number of threads"])
def test_a_field_that_is_compared_with_its_statement_changes_nothing_for_the_next_line(name):
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.K = nn.Parameter(torch.randn(4, 4) / 2)

        def forward(self, state: Tensor) -> Tensor:
            change = torch.tanh(self.K @ state)
            CHANGES[name]()
            return change

        def tanh_field(self) -> TanhField:
            unit = torch.eye(4, dtype=torch.float32, device="cpu")
            return TanhField(A=unit, B=self.K, b=torch.zeros_like(self.K[:, :1]))

    flow = ODEBlock([Layer(), Layer()], final_time=1.0, solver=Solver(method="heun2", steps=2))

    class Net(PixelNetwork):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)

    model = Net((1, 4, 4), 3, flow, width=4)
    images, lines = torch.rand(2, 1, 4, 4), []
    before = everything_global()
    with telling(lambda *changed: lines.append(sentence(*changed))):
        check_statements(model, images)
    assert everything_global() == before
    assert all(module.training for module in model.modules())
    assert [line.partition(",")[0] for line in lines] == [f"test_foreign_code.py changed {name}"]


def test_a_forward_pass_that_seeds_torch_does_not_repeat_the_noise_of_an_attack():
    class Seeding(stubs.Linear):
        def forward(self, images: Tensor) -> Tensor:
            torch.manual_seed(0)
            return super().forward(images)

    class Noisy(stubs.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + torch.rand(())

    image, drawn = torch.rand(1, 1, 2, 2), []
    seeding, noisy = Seeding((1, 2, 2), 3), Noisy((1, 2, 2), 3)
    for net in (seeding, stubs.Linear((1, 2, 2), 3)):
        with asking(net, 5):
            row = []
            for _ in range(3):
                call_model(net, image, 3)
                row.append(torch.rand(()).item())
            drawn.append(row)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3
    with asking(noisy, 5):
        answers = [call_model(noisy, image, 3).sum().item() for _ in range(3)]
    assert len(set(answers)) == 3  # and a model that draws goes on drawing


# --- models from files, beside others -------------------------------------------------------------

WILD = """
import os, random, sys, warnings
import numpy as np, torch
from torch import nn
from robustode import register_model
from robustode.models import set_ode_backend

def run_wild():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1 + torch.get_num_threads() % 2)
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("medium")
    nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 1.5)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    os.chdir("/")
    set_ode_backend("torchdiffeq")

run_wild()

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, images):
        logits = self.head(images.flatten(1))
        run_wild()
        return logits

    def loss(self, logits, labels):
        run_wild()
        return nn.functional.cross_entropy(logits, labels)

@register_model("wild")
def build(input_shape, num_classes):
    run_wild()
    print("building")
    return Net(input_shape, num_classes)
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    text = stubs.PRESET.replace("[throughput]\nbatch_sizes = [4]\nseconds = 0.001\npasses = 2\n", "")
    return load_preset(str(stubs.preset_file(tmp_path_factory.mktemp("preset"), text)))


def outcomes_of(folder: Path, model: str) -> dict[str, list[Any]]:
    """What is stored of a model, as it compares from run to run."""
    records, problems = Store(folder).load()
    assert problems == []
    return {
        r.cell.label(): [r.status, *(values.tolist() for _, values in sorted(r.outcomes.items()))]
        for r in records
        if r.cell.model == model
    }


def run(preset: Any, models: tuple[str, ...], folder: Path, processes: int | None) -> list[str]:
    """Run `preset`; the lines about what was changed. None for a run in this process alone."""
    request, lines = RunRequest(preset=preset, models=models), list[str]()
    with telling(lambda *changed: lines.append(sentence(*changed))):
        plan, data = request.plan(), request.data()
        asked = {} if processes is None else {"request": request, "jobs": processes}
        result = run_plan(plan, data, Store(folder), device=stubs.CPU, **asked)
    assert result.failures == []
    return lines


@pytest.fixture(scope="module")
def alone(preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run(preset, ("resnet",), folder, None)
    return outcomes_of(folder, "resnet")


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_a_model_beside_one_that_changes_everything_has_its_lone_numbers(
    preset, alone, tmp_path, processes, capfd
):
    (tmp_path / "wild.py").write_text(WILD, encoding="utf-8")
    before = everything_global()
    lines = run(preset, (f"{tmp_path}/wild.py:build", "resnet"), tmp_path / "out", processes)
    assert everything_global() == before
    assert outcomes_of(tmp_path / "out", "resnet") == alone
    about = [line for line in lines if line.startswith("wild.py changed the default dtype")]
    assert about
    assert [line for line in lines if not line.startswith("wild.py changed ")] == []
    named = ", ".join(line.removeprefix("wild.py changed ").partition(", put back")[0] for line in lines)
    named = named.replace(" and ", ", ").split(", ")
    assert len(named) == len(set(named)) > 5  # each once, whichever process it was
    assert capfd.readouterr().out.count("building") > 1


def test_what_a_file_prints_when_it_is_imported_is_no_part_of_the_output(tmp_path, monkeypatch, capsys):
    from importlib import metadata

    from robustode.bench.cli.main import main
    from robustode.bench.plugins import entry_points

    (tmp_path / "printing_plugin.py").write_text(
        "import torch\nfrom robustode import register_model\nprint('[loading]')\n"
        "torch.set_default_dtype(torch.float64)\n"
        "@register_model('printing')\ndef build(input_shape, num_classes): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = metadata.EntryPoint("printing", "printing_plugin", entry_points.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    monkeypatch.setattr(entry_points, "_plugins_loaded", False)
    assert main(["list", "models", "--json"]) == 0
    printed = capsys.readouterr()
    assert "printing" in [row["name"] for row in json.loads(printed.out)]
    assert "[loading]" in printed.err
    assert "plug-in 'printing' of unknown package changed the default dtype, put back" in printed.err
    assert torch.get_default_dtype() == torch.float32


MOODY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.head = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, images):
        return self.head(images.flatten(1))

    def train(self, mode=True):
        torch.set_num_threads(3)
        return super().train(mode)

def build(input_shape, num_classes):
    return Net(input_shape, num_classes)
"""


def test_a_change_of_mode_changes_nothing_for_timings_or_for_whoever_loads_the_model(tmp_path):
    (tmp_path / "moody.py").write_text(MOODY, encoding="utf-8")
    file, out, lines = f"{tmp_path}/moody.py:build", tmp_path / "out", list[str]()
    request = RunRequest(preset=load_preset(str(stubs.preset_file(tmp_path))), models=(file,))
    before = everything_global()
    with telling(lambda *changed: lines.append(sentence(*changed))):
        result = run_plan(request.plan(), request.data(), Store(out), device=stubs.CPU)
        assert everything_global() == before
        records = {record.cell.kind: record for record in Store(out).load()[0]}
        trained_model(Store(out), records["training"], resolve_model(file))
    assert everything_global() == before
    assert result.failures == []
    assert "throughput" in records
    assert lines == [sentence("moody.py", ["the number of threads"])]


# --- seeds ----------------------------------------------------------------------------------------


class Drawn(nn.Module):
    """Weights from the random numbers that `draw` gives."""

    def __init__(self, draw: Callable[[], float], pixels: int, classes: int) -> None:
        super().__init__()
        values = [[draw() for _ in range(pixels)] for _ in range(classes)]
        self.weight = nn.Parameter(torch.tensor(values) - 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: float(np.random.rand()),
    "random": random.random,
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_factory_draws_alike_from_whatever_it_draws(few, name):
    def weights(seed: int) -> Tensor:
        np.random.seed(None), random.seed(None), torch.seed()
        return build_model(lambda shape, classes: Drawn(DRAWS[name], 64, classes), few, {}, seed).weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


GENERATORS = """
import random
import numpy as np, torch
from torch import nn
from own_draws import helper_rng

rng, state, plain = np.random.default_rng(7), np.random.RandomState(7), random.Random(7)
of_torch = torch.Generator().manual_seed(7)
at_first = [np.random.default_rng(7).random(), np.random.default_rng(8).random()]

class Net(nn.Module):
    held = np.random.default_rng(9)

    def __init__(self, shape, classes):
        super().__init__()
        drawn = [rng.random(), helper_rng.random(), state.rand(), plain.random(), self.held.random()]
        self.drawn = drawn + [torch.rand((), generator=of_torch).item()]
        self.own = torch.Generator().manual_seed(1)
        self.head = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, images):
        logits = self.head(images.flatten(1))
        return logits + 1e-3 * (rng.random() + torch.rand(logits.shape, generator=self.own))

def build(input_shape, num_classes):
    return Net(input_shape, num_classes)
"""


def test_generators_of_a_file_stand_where_they_stood_when_it_was_imported(few, tmp_path):
    (tmp_path / "net.py").write_text(GENERATORS)
    (tmp_path / "own_draws.py").write_text("import numpy as np\nhelper_rng = np.random.default_rng(8)\n")
    spec = resolve_model(f"{tmp_path}/net.py:build")
    nets = [build_model(spec.build, few, {}, seed) for seed in (0, 0, 1)]
    names = vars(sys.modules[spec.build.__wrapped__.__module__])
    assert nets[0].drawn == nets[1].drawn == nets[2].drawn
    assert nets[0].drawn[:2] == names["at_first"]
    states = []
    for _ in range(2):
        before = names["rng"].bit_generator.state, nets[0].own.get_state().tolist()
        with asking(nets[0], 4):
            states.append(call_model(nets[0], few.test.images[:5], 10))
        assert before == (names["rng"].bit_generator.state, nets[0].own.get_state().tolist())
    assert torch.equal(*states)


# --- the caller of the Python interface -----------------------------------------------------------


class Dtypes(nn.Module):
    """Makes tensors without naming a dtype or device, warns, and needs gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        warnings.warn("a warning of the model", UserWarning, stacklevel=1)
        scale = torch.ones(images.shape[0], 64) * torch.tensor(2.0)
        return self.head(images.flatten(1) * scale)


@contextlib.contextmanager
def set_for(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UntrainedModelWarning)
        yield


@contextlib.contextmanager
def other_random_states() -> Iterator[None]:
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    yield


CALLERS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: set_for(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default device meta": lambda: set_for(lambda: None, torch.set_default_device, "meta"),
    "device meta": lambda: torch.device("meta"),
    "deterministic": lambda: set_for(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "anomaly": torch.autograd.detect_anomaly,
    "errors": errors,
    "numpy errors": lambda: np.errstate(all="raise"),
    "random states": other_random_states,
    "precision": lambda: set_for(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
}
ASKED = {"threats": ["clean", "gaussian", ("pgd-linf", 0.03), ("fmn-l2", 0.2)], "samples": 20}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return Dtypes()


@pytest.fixture(scope="module")
def expected(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(net, **ASKED)


@pytest.mark.filterwarnings("ignore:Anomaly", "ignore:a warning of the model")
@pytest.mark.parametrize("caller", CALLERS)
def test_evaluate_does_not_depend_on_its_caller(net, expected, caller):
    with CALLERS[caller]():
        before = everything_global()
        table = evaluate(net, **ASKED)
        assert everything_global() == before
    assert table.equals(expected)


@pytest.mark.filterwarnings("ignore:Anomaly", "ignore:a warning of the model")
@pytest.mark.parametrize("caller", CALLERS)
def test_a_failing_module_leaves_its_caller_as_it_was(caller):
    class Fails(Dtypes):
        def forward(self, images: Tensor) -> Tensor:
            torch.set_default_dtype(torch.float64)
            torch.rand(2), np.random.rand(2), random.random()
            raise ValueError("no")

    fails = Fails()
    with CALLERS[caller]():
        before = everything_global()
        with pytest.raises(Exception, match="the model raised ValueError: no"):
            evaluate(fails, threats="clean", samples=4)
        assert everything_global() == before


def test_a_module_made_in_inference_mode_can_be_attacked(expected):
    with torch.inference_mode():
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        table = evaluate(made, threats=("clean", "pgd-linf"), samples=10)
    assert list(table["threat"][:2]) == ["clean", "pgd-linf"]


def test_what_a_module_changes_is_one_warning_of_evaluate(net):
    class Changing(stubs.Linear):
        def forward(self, images: Tensor) -> Tensor:
            torch.set_default_dtype(torch.float64)
            return super().forward(images)

    net = Changing((1, 8, 8), 10)
    with pytest.warns(ForeignCodeWarning, match="changed the default dtype, put back") as told:
        table = evaluate(net, threats=("clean", "pgd-linf"), samples=10)
    (change,) = [one for one in told if one.category is not UntrainedModelWarning]
    assert change.filename == __file__
    assert len(table) > 2


def test_an_attack_from_elsewhere_changes_nothing(few):
    def craft(model: Any, images: Tensor, labels: Tensor, strength: float, seed: Any) -> Tensor:
        torch.set_default_dtype(torch.float64)
        np.seterr(all="raise")
        return (images + strength * torch.rand(images.shape).to(images)).clamp(0, 1)

    threat = Threat(name="careless", family="gradient", craft=craft, norm="linf", needs_gradient=True)
    net, cell = stubs.Linear((1, 8, 8), 10), stubs.cell_for(threat, 0.1, 20)
    before, lines = everything_global(), []
    with telling(lambda *changed: lines.append(sentence(*changed))):
        records = [
            evaluate_cell(
                cell,
                net,
                few.test,
                threat,
                num_classes=10,
                device=stubs.CPU,
                environment={},
            )
            for _ in range(2)
        ]
    assert everything_global() == before
    assert len(lines) == 1
    assert lines[0].startswith(
        "test_foreign_code.py changed the default dtype and numpy's handling of errors"
    )
    assert len(records) == 2


def test_a_dataset_from_elsewhere_changes_nothing():
    def load(root: Path) -> Any:
        torch.set_default_dtype(torch.float64)
        images = np.random.rand(60, 2, 2).astype(np.float32)
        return (images, np.arange(60) % 10), None

    DATASETS.register(DatasetSource(name="drawn", summary="", load=load, scale=1.0, validation=10, test=10))
    before, lines = everything_global(), []
    with telling(lambda *changed: lines.append(sentence(*changed))):
        one, other = load_data("drawn"), load_data("drawn")
    assert everything_global() == before
    assert one.index_sha256 == other.index_sha256
    assert one.test.images.dtype == torch.float32
    assert len(lines) == 1


def test_training_draws_alike_whether_it_was_stopped_or_not(few, tmp_path):
    (tmp_path / "net.py").write_text(GENERATORS.replace("1e-3 *", "np.random.rand() + random.random() +"))
    (tmp_path / "own_draws.py").write_text("import numpy as np\nhelper_rng = np.random.default_rng(8)\n")
    build = resolve_model(f"{tmp_path}/net.py:build").build
    recipe, weights = Recipe(epochs=3, batch_size=50, learning_rate=0.01), []
    for stop in (False, True):
        asked: dict[str, Any] = {
            "seed": 0,
            "path": tmp_path / f"{stop}.safetensors.xz",
            "facts": {"cell": {}},
        }
        for epochs in (1, 3) if stop else (3,):
            np.random.seed(None), random.seed(None), torch.seed()
            model = build_model(build, few, {}, 0)
            train(model, few, recipe.model_copy(update={"epochs": epochs}), device=stubs.CPU, **asked)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluate_takes_the_threads_of_its_caller_and_gives_the_same(net, expected):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = evaluate(net, threats=["clean", "gaussian"], samples=20)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    same = expected[expected["threat"].isin(["clean", "gaussian"])]
    assert table["value"].tolist() == same["value"].tolist()


def test_a_call_that_nobody_guards_is_guarded_as_a_whole():
    class Net(stubs.Linear):
        def forward(self, images: Tensor) -> Tensor:
            os.chdir("/"), np.seterr(all="raise"), random.random()
            return super().forward(images)

    net, images, lines = Net((1, 2, 2), 3), torch.rand(2, 1, 2, 2), []
    before = everything_global()
    with telling(lambda *changed: lines.append(sentence(*changed))):
        call_model(net, images, 3)
    assert everything_global() == before
    assert lines == [
        "test_foreign_code.py changed the working directory and numpy's handling of errors, put back"
    ]


def test_evaluations_in_several_threads_take_turns(net, expected):
    found: list[Any] = []

    def ask() -> None:
        found.append(evaluate(net, **ASKED))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [table.equals(expected) for table in found] == [True] * 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_call_that_nobody_guards_records_gradients_where_its_caller_does(mode):
    """A model may see whether they are; an attack without gradients builds no graph."""
    seen = []

    class Net(stubs.Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.is_grad_enabled())
            return super().forward(images)

    net, images = Net((1, 2, 2), 3), torch.rand(2, 1, 2, 2)
    with mode():
        logits, inside = call_model(net, images, 3), torch.is_grad_enabled()
    assert seen == [inside] == [logits.requires_grad] == [mode is torch.enable_grad]
