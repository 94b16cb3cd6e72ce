"""What a model prints while it is built is shown once in a command, and each time from Python."""

from __future__ import annotations

import pytest
from robustode.bench.cli.main import main
from robustode.bench.runtime.construct import construct
from robustode.bench.runtime.printed import each_line_once, printing_once, show_line
from stubs import Linear


def build(shape, classes):
    print("channels: 4")
    print("steps: 2", end="")
    return Linear(shape, classes)


def made() -> None:
    construct(build, (1, 2, 2), 3, {}, seed=0)


def test_each_line_is_shown_once_in_a_command(capsys):
    with each_line_once():
        made()
        made()
        show_line("steps: 2")
        show_line("of another process")
        print("channels: 4")
    assert capsys.readouterr().out == "channels: 4\nsteps: 2\nof another process\nchannels: 4\n"
    with each_line_once():
        made()
    assert capsys.readouterr().out == "channels: 4\nsteps: 2\n", "the next command shows it again"


def test_from_python_everything_is_shown(capsys):
    made()
    made()
    assert capsys.readouterr().out == 2 * "channels: 4\nsteps: 2"


def test_what_was_printed_before_an_error_is_shown(capsys):
    def fail() -> None:
        with printing_once():
            print("begun", end="")
            raise ValueError("no")

    with each_line_once(), pytest.raises(ValueError, match="no"):
        fail()
    assert capsys.readouterr().out == "begun\n"


@pytest.mark.usefixtures("registries")
def test_check_shows_what_a_factory_prints_once(tmp_path, capsys):
    path = tmp_path / "chatty.py"
    path.write_text("def build(shape, classes):\n    print('at work')\n    raise ValueError('no room')\n")
    assert main(["check", f"{path}:build"]) == 1
    assert capsys.readouterr().out.count("at work") == 1
