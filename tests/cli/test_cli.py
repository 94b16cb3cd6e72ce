"""The command line in process: exit statuses, one line for a mistake, nothing written by a dry run."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import robustode
import stubs
from robustode.bench.cli import main as cli
from robustode.bench.cli.arguments import LISTS, command_line
from robustode.bench.cli.main import main
from robustode.bench.records.store import Store
from robustode.models import MODELS, get_ode_backend

pytestmark = pytest.mark.usefixtures("registries")


def run(*argv: object) -> int:
    try:
        return main([str(argument) for argument in argv])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def error(capsys):
    """Run a command that must fail with status 2; returns its one line on stderr."""

    def check(*argv: object, status: int = 2) -> str:
        assert run(*argv) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert err.startswith("robustode")
        return err

    return check


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command: give one of run, list, new-model, new-threat, "),
        (["rn"], "unknown command 'rn': did you mean 'run'?"),
        (["zzzzzz"], "unknown command 'zzzzzz': known: run, list, new-model, new-threat, "),
        (["run", "--preset", "quik"], "unknown preset 'quik': did you mean quick"),
        (["run", "--preset", "none.toml"], "preset none.toml: cannot be read: No such file"),
        (["run", "--models", "resnt"], "unknown model 'resnt': did you mean resnet"),
        (["run", "--models", ","], "--models names no model"),
        (["run", "--models", "none.py:build"], "there is no file"),
        (["run", "--seeds", "0"], "--seeds must be at least 1, not 0"),
        (["run", "--seeds", "x"], "argument --seeds: invalid int value: 'x'"),
        (["run", "--seed", "x"], "argument --seed: 'x' names no training seeds: write 2, or 0,2"),
        (["run", "--seed", "1", "--seeds", "2"], "argument --seeds: not allowed with argument --seed"),
        (["run", "--device", "tpu"], "--device tpu: choose auto, cpu, cuda or cuda:N"),
        (["merge", "a", "b"], "the following arguments are required: --out"),
        (["merge", "a", "b", "--out", "c"], "no records in a: run `robustode run` first"),
        (["run", "--fres"], "unrecognized arguments: --fres"),
        (["list", "model"], "invalid choice: 'model'"),
        (["check", "ch-nod"], "unknown model 'ch-nod': did you mean ch-node"),
        (["new-model", "A B"], "model name 'A B' is not allowed"),
        (["report", "--out", "none"], "no records in none: run `robustode run` first, or pass --out"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(error, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in error(*argv)
    assert list(tmp_path.iterdir()) == []


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"robustode {robustode.__version__}\n"


def test_help_fits_a_screen_and_lists_every_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("    ")] == list(cli.HANDLERS)


@pytest.mark.parametrize("command", cli.HANDLERS)
def test_the_help_of_a_command_fits_and_ends_with_an_example_that_it_understands(
    command, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(command, "--help") == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: robustode {command} ")
    assert lines[-2] == "example:"
    words = lines[-1].split()
    assert words[0] == "robustode"
    assert command_line().parse_args(words[1:]).command == command


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_errors_of_numba_write_no_escape_sequence_to_a_terminal():
    """Numba starts colorama for them, which at exit resets the colours of every terminal."""
    command = "main(['list', 'presets']); from numba.core.errors import termcolor; termcolor().errmsg('')"
    controller, terminal = os.openpty()
    subprocess.run(
        [sys.executable, "-c", f"from robustode.bench.cli.main import main; {command}"],
        stdout=terminal,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | {"TERM": "dumb"},
    )
    os.close(terminal)
    written = os.read(controller, 1 << 16)
    os.close(controller)
    assert b"quick" in written
    assert b"\x1b" not in written


@pytest.mark.parametrize("what", LISTS)
def test_lists_are_json_for_programs_and_lines_for_people(capsys, what):
    assert run("list", what, "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) >= 2
    names = [entry["name"] for entry in entries]
    assert run("list", what) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in names)
    assert not text.startswith("[")


def test_the_list_of_models_is_the_registry(capsys):
    run("list", "models", "--json")
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(entries) == MODELS.names()
    assert entries["ch-node"]["claims"] == ["contractive", "fixed_step"]
    assert entries["node-dopri5"]["hyperparameters"]["method"] == "dopri5"
    assert "batch-independence" in entries["node-dopri5"]["expected_failures"]
    run("list", "models")
    assert "expected to fail batch-independence: the adaptive solver" in capsys.readouterr().out


def test_the_list_of_threats_tells_of_those_in_records_that_no_preset_lists(capsys):
    assert run("list", "threats") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("transfer-linf", "transfer-l2"):
        assert "stored examples of all other models, by `robustode transfer`" in lines[name]
    assert "`robustode submit-attack`" in lines["submitted-*"]
    assert run("list", "threats", "--json") == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert (found["transfer-l2"]["norm"], found["transfer-l2"]["family"]) == ("l2", "replay")


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset = stubs.preset_file(tmp_path)
    assert (
        run(
            "run",
            "--preset",
            preset,
            "--models",
            "resnet, node,resnet",
            "--seeds",
            "2",
            "--dry-run",
            "--jobs",
            "2",
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["resnet", "node"]
    count = 2 * (stubs.CELLS + stubs.FLOW_CELLS)
    assert all(f"{count} of {count} cells to do" in line for line in lines[:2])
    assert lines[2] == "tiny: tiny; the preset says: seconds"
    assert re.fullmatch(r"about .* here, 2 at once, from .*; results in results/tiny", lines[3])
    alone = ("run", "--preset", preset, "--models", "resnet", "--dry-run", "--jobs", "9")
    assert run(*alone) == 0
    assert "here, one after the other, from" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [preset]


def test_a_dry_run_says_which_model_cannot_be_asked(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text("def bad(shape, classes):\n    raise ValueError('no')\n")
    preset = stubs.preset_file(tmp_path)
    assert run("run", "--preset", preset, "--models", "resnet,bad.py:bad", "--dry-run") == 1
    good, bad, *_, total = capsys.readouterr().out.splitlines()
    assert re.search(r"resnet .*cells to do  about ", good)
    assert total.endswith("of each model, without bad; results in results/tiny")
    assert bad.endswith("cannot be timed: the model cannot be built: ValueError: no (bad.py:2)")
    assert run("run", "--preset", preset, "--models", "bad.py:bad", "--dry-run") == 1
    total = capsys.readouterr().out.splitlines()[-1]
    assert "about" not in total
    assert total.endswith(" results/tiny")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, registries_of_module) -> tuple[Path, list[str]]:
    """A folder with a finished run of two models, one of which always fails, and its arguments."""
    folder = tmp_path_factory.mktemp("cli")
    bad = folder / "bad.py"
    bad.write_text("def build(shape, classes):\n    raise RuntimeError('no model today')\n")
    preset = stubs.preset_file(folder)
    argv = ["run", "--preset", str(preset), "--models", f"resnet,{bad}:build", "--device", "cpu"]
    argv += ["--out", str(folder / "out")]
    with (
        (folder / "stdout").open("w") as out,
        (folder / "stderr").open("w") as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        status = main(argv)
    assert status == 1, (folder / "stderr").read_text()
    return folder, argv


def test_a_failure_is_told_once(finished):
    folder, _ = finished
    told = (folder / "stdout").read_text() + (folder / "stderr").read_text()
    assert told.count("no model today") == 1
    assert "bad seed 0: 1 failed in" in told


def test_a_run_with_a_failure_ends_with_status_1_and_names_it_last(finished):
    folder, _ = finished
    out, err = (folder / "stdout").read_text(), (folder / "stderr").read_text()
    assert err.splitlines()[-1] == (
        "failed: bad seed 0 · training: error: "
        "the model cannot be built: RuntimeError: no model today (bad.py:2)"
    )
    assert "Traceback" not in err
    assert f"{stubs.CELLS + stubs.FLOW_CELLS + 1} cells done, 0 stored already" in out
    assert "resnet" in out
    assert "\x1b" not in out, "no colours in a pipe"
    page = (folder / "out" / "report" / "index.html").resolve()
    assert f"page: {page}" in out
    assert page.exists()
    for name in ("leaderboard.csv", "leaderboard.md", "summary.csv"):
        assert (folder / "out" / "report" / name).stat().st_size > 0


def test_a_run_again_does_only_what_failed(finished, capsys, monkeypatch):
    _, argv = finished
    monkeypatch.setattr(cli, "show_report", lambda out: 0)
    assert main(argv) == 1
    assert f"1 cells done, {stubs.CELLS + stubs.FLOW_CELLS} stored already" in capsys.readouterr().out


def test_quiet_prints_no_progress(finished, capsys, monkeypatch):
    _, argv = finished
    monkeypatch.setattr(cli, "show_report", lambda out: 0)
    assert main([*argv[:3], "--models", "resnet", *argv[5:], "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_finished_run_has_nothing_left_in_a_dry_run(finished, capsys):
    _, argv = finished
    assert main([*argv, "--dry-run"]) == 1, "one of the two still cannot be built"
    lines = capsys.readouterr().out.splitlines()
    assert f"0 of {stubs.CELLS + stubs.FLOW_CELLS} cells to do  about 0 s" in lines[0]
    assert f"{stubs.CELLS} of {stubs.CELLS} cells to do" in lines[1]


def test_a_locked_folder_is_one_line(finished, error):
    from robustode.bench.records.store import Store

    folder, argv = finished
    with Store(folder / "out").lock():
        assert "another run is writing to" in error(*argv, "--quiet")


def test_data_that_is_not_there_is_one_line(error, tmp_path, monkeypatch):
    import torchvision

    def offline(*_args, **_kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    line = error("run", "--preset", "standard", "--data-root", tmp_path, "--out", tmp_path / "out")
    assert "MNIST is not usable" in line
    assert "--data-root" in line
    assert list(tmp_path.iterdir()) == []


def test_figures_do_not_depend_on_the_backend_that_a_notebook_hands_on(monkeypatch, capsys):
    """In `!robustode run`, matplotlib-inline may not be installed where robustode is."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline_that_is_not_there.backend_inline")
    assert main(["list", "presets"]) == 0
    assert os.environ["MPLBACKEND"] == "agg"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_show_a_sign_gets_another(finished, monkeypatch, encoding):
    """The leaderboard has signs that Windows' console does not know."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    assert main(["report", "--out", str(finished[0] / "out")]) == 0
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert "resnet" in text
    assert "?" in text


def test_stopping_a_run_is_not_an_error_message_of_python(monkeypatch, capsys):
    def stop(_arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.HANDLERS, "list", stop)
    assert main(["list", "models"]) == 130
    (line,) = capsys.readouterr().err.split("\n", 1)[1].splitlines()
    assert line.startswith("robustode: stopped")


def test_new_model_then_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("new-model", "my-model") == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "wrote my_model.py",
        "next: robustode check my_model.py:build",
        "then: robustode run --models my_model.py:build",
        "or, with weights of your own: robustode run --models my_model.py:build --weights FILE.safetensors",
    ]
    assert run("check", "my_model.py:build") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"shapes", "finite", "batch-independence"} < {line.split()[1] for line in lines}
    assert all(line.startswith("pass ") for line in lines)


def test_a_new_model_in_the_registrys_own_folder_goes_by_its_name(monkeypatch, capsys):
    """Loaded as a file besides, it would be registered twice."""
    inside = Path(cli.__file__).parents[2] / "models" / "my_model.py"
    monkeypatch.setattr("robustode.bench.plugins.new_file.new_file", lambda kind, name, file, images: inside)
    assert run("new-model", "my-model", inside) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "next: robustode check my-model",
        "then: robustode run --models my-model",
    ]


def test_check_of_a_defective_model_ends_with_status_1(tmp_path, capsys):
    path = tmp_path / "soft.py"
    path.write_text(
        "from torch import nn\n"
        "def build(shape, classes):\n"
        "    size = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes), nn.Softmax(1))\n"
    )
    assert run("check", f"{path}:build") == 1
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[1].rstrip(":"): line for line in lines if not line.startswith("pass")}
    assert {name: line.split()[0] for name, line in found.items()} == {
        "tanh-field": "n/a",
        "logits": "FAIL",
        "lipschitz-bound": "n/a",
    }
    assert "softmax" in found["logits"]


def test_check_tells_one_reason_once(tmp_path, capsys):
    path = tmp_path / "no.py"
    path.write_text("def build(shape, classes):\n    raise ValueError('no room')\n")
    assert run("check", f"{path}:build") == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    reasons = [line for line in failed if "no room" in line]
    first = reasons[1].split()[1]  # `shapes`, before it, names an input
    assert len(reasons) == 2
    assert len(failed) > 10
    assert all(line.endswith(f": for the reason of {first.rstrip(':')}") for line in failed[2:])


def test_check_of_a_stated_exemption_passes(capsys):
    assert run("check", "node-dopri5") == 0
    assert "exempt  batch-independence: the adaptive solver" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quick_preset(tmp_path, capsys):
    """The whole default run: every model learns, and the second time there is nothing to do."""
    import pandas as pd

    assert run("run", "--out", tmp_path / "quick", "--device", "cpu") == 0
    board = pd.read_csv(tmp_path / "quick" / "report" / "summary.csv")
    clean = board[(board["threat"] == "clean") & (board["statistic"] == "accuracy")]
    assert set(clean["model"]) == {"resnet", "node", "h-node", "ch-node"}
    assert (clean["value"] > 0.9).all()
    capsys.readouterr()
    assert run("run", "--out", tmp_path / "quick", "--device", "cpu") == 0
    assert "0 cells done" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["run", "--quiet", "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("robustode: error: ")
    assert error.count("\n") == 1


def test_flow_eager_uses_torchdiffeq_for_this_run_alone(tmp_path):
    preset = stubs.preset_file(tmp_path)
    found = {}
    for flow, implementation in (("eager", "eager"), ("auto", "numba")):
        out = tmp_path / flow
        command = (
            "run",
            "--preset",
            preset,
            "--models",
            "resnet",
            "--seeds",
            "1",
            "--device",
            "cpu",
            "--quiet",
        )
        assert run(*command, "--jobs", "1", "--flow", flow, "--out", out) == 0
        assert get_ode_backend() == "compiled"
        records, _ = Store(out).load()
        flows = {r.environment["flow"] for r in records if r.cell.kind in ("training", "accuracy")}
        assert flows == {implementation}
        found[flow] = {r.cell.threat: r.accuracy for r in records if r.cell.kind == "accuracy"}
    assert found["eager"] == pytest.approx(found["auto"], abs=0.05)


def test_a_results_folder_that_is_a_file_is_refused(tmp_path, error):
    file = tmp_path / "taken"
    file.write_text("mine")
    preset = stubs.preset_file(tmp_path)
    line = error("run", "--preset", preset, "--models", "resnet", "--quiet", "--out", file)
    assert line == f"robustode: error: {file} is or lies in a file: choose a folder with --out\n"
    assert file.read_text() == "mine"


def test_a_terminal_that_lacks_a_letter_shows_a_question_mark(monkeypatch):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setitem(cli.HANDLERS, "list", lambda arguments: print("worst case ℓ∞") or 0)
    assert run("list", "models") == 0
    ascii_only.flush()
    assert ascii_only.buffer.getvalue().decode("ascii").strip() == "worst case ??"
