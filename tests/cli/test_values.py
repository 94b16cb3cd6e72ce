"""Values of options: durations, limits, seeds."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest
from robustode.bench.cli.main import main
from robustode.bench.cli.values import seconds, time_limits, training_seeds


@pytest.mark.parametrize(
    ("text", "found"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("15m", 900), (".5 min", 30), ("2.s", 2)]
)
def test_durations(text, found):
    assert seconds(text) == found


@pytest.mark.parametrize("text", ["", "0", "0h", "-3", "h", "1d", "nan", "inf", "1e400", "1h30m", "1,2"])
def test_what_is_no_duration(text):
    with pytest.raises(ArgumentTypeError, match="is no time above 0"):
        seconds(text)


def test_limits_are_one_time_or_two():
    assert time_limits("2h") == (7200, 7200)
    assert time_limits("2h, 10m") == (7200, 600)
    with pytest.raises(ArgumentTypeError, match="more than two times"):
        time_limits("1,2,3")


def test_training_seeds_by_name():
    assert training_seeds("2") == (2,)
    assert training_seeds("3, 0,3") == (0, 3)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "0-3", "two", "1,,2"])
def test_what_names_no_seed(text):
    with pytest.raises(ArgumentTypeError, match="names no training seeds"):
        training_seeds(text)


@pytest.mark.parametrize("command", ["run", "audit"])
def test_a_wrong_limit_is_one_line(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--time-limit", "soon"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "argument --time-limit: 'soon' is no time above 0, such as 90s, 15m or 2h" in err
