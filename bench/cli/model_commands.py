"""Commands on models and other registered things: list, new-model, check. Each imports what it needs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..._errors import InvalidArgument
from .shared import load_plugins_with_warnings


def list_command(arguments: Namespace) -> int:
    """Print what is registered."""
    from .list import listing

    if arguments.what == "models":
        load_plugins_with_warnings()
    print(listing(arguments.what, as_json=arguments.json))
    return 0


def new_model_command(arguments: Namespace) -> int:
    """Write a one-file model and say what to do next."""
    from ...models import MODELS
    from ..plugins.new_model import new_model

    if arguments.name in MODELS:
        raise InvalidArgument(f"model {arguments.name!r} is registered already: choose another name")
    path = new_model(arguments.name, arguments.file)
    registered = path.resolve().parent == Path(__file__).resolve().parents[2] / "models"
    model = arguments.name if registered else f"{path}:build"
    print(f"wrote {path}")
    print(f"next: robustode check {model}")
    print(f"then: robustode run --models {model}")
    print(f"or, with weights of your own: robustode run --models {model} --weights FILE.safetensors")
    return 0


def check_command(arguments: Namespace) -> int:
    """Print the conformance checks of one model; 1 where one fails."""
    from rich.console import Console

    from ..conformance.run import check_model
    from ..plugins.model_file import resolve_model

    load_plugins_with_warnings()
    console = Console(highlight=False)
    told: dict[str | None, str] = {}
    for result in check_model(resolve_model(arguments.model)):
        first = result.check if result.passed else told.setdefault(result.error, result.check)
        line = str(result) if first == result.check else f"FAIL    {result.check}: for the reason of {first}"
        console.print(line, markup=False, soft_wrap=True)
    return 1 if told else 0
