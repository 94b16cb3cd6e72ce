"""Model cards: what the records say, in the published schema, the same bytes each time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import stubs
from pydantic import ValidationError
from robustode.bench.cli.main import main
from robustode.bench.config.plan import make_plan
from robustode.bench.config.preset import load_preset
from robustode.bench.records.atomic import write_atomically
from robustode.bench.records.checkpoint import load_bytes
from robustode.bench.records.headline import Headline
from robustode.bench.records.latest import current, entry
from robustode.bench.records.store import Store
from robustode.bench.report.html.model_cards import ModelCard, card_schema, cards, published_schema
from robustode.bench.report.report import texts
from robustode.bench.report.text import value_text
from robustode.bench.runner.run import run_plan
from robustode.bench.verification.verify import verify
from robustode.models import MODELS

pytestmark = pytest.mark.usefixtures("empty_figures")

RESULTS = Path(__file__).parents[2] / "results"


def write_tables(folder: Path) -> None:
    """The report without its figures and page."""
    for name, text in texts(folder).items():
        write_atomically(folder / "report" / name, text.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, few) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    plan = make_plan(load_preset(str(stubs.preset_file(folder))), seeds=2)
    assert run_plan(plan, few, Store(folder / "out"), device=stubs.CPU).failures == []
    write_tables(folder / "out")
    return folder / "out"


def read(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "report" / "cards").glob("*")}


def test_the_published_schema_is_that_of_the_cards():
    """Otherwise: python -m robustode.bench.report.html.model_cards > bench/schemas/model-card.schema.json"""
    assert published_schema() == card_schema()


def test_a_card_says_what_the_model_is_and_what_makes_it_again(folder, few):
    (card,) = read(folder).values()
    spec = MODELS.get("resnet")
    assert (card["name"], card["summary"], card["reference"]) == ("resnet", spec.summary, spec.reference)
    assert card["claims"] == sorted(spec.claims)
    assert card["hyperparameters"] == spec.resolve()
    assert card["recipe"]["epochs"] == 2
    assert (card["weights"], card["file"], card["plugin"]) == ("trained", None, None)
    assert card["seeds"] == [0, 1]
    assert card["dataset"] == {
        "name": "digits",
        "index_sha256": few.index_sha256,
        "input_shape": [1, 8, 8],
        "num_classes": 10,
    }
    for checkpoint in card["checkpoints"]:
        data = load_bytes(folder / checkpoint["file"])
        assert hashlib.sha256(data).hexdigest() == checkpoint["sha256"]
    assert card["command"] == "robustode run --preset tiny.toml --models resnet --seeds 2 --out again"
    assert card["parameters"] > 0


@pytest.mark.parametrize("name", ["digits", "paper", "certified", "sweep"])
def test_every_published_row_has_a_card_that_keeps_the_schema(name):
    store, headline = Store(RESULTS / name), Headline.read(RESULTS / name)
    used, _ = current(store.load()[0], headline.preferred)
    found = cards(store, used, headline.preset)
    assert len(found) == len({entry(record.cell) for record in used})
    for text in found.values():
        card = ModelCard.model_validate_json(text)
        assert all((RESULTS / name / checkpoint.file).exists() for checkpoint in card.checkpoints)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": []},
        {"extra": 1},
        {"schema_version": 2},
        {"parameters": -1},
        {"weights": "found"},
        {"checkpoints": [{"seed": 0, "file": "x", "sha256": "no"}]},
    ],
)
def test_what_is_no_card_is_refused(folder, change):
    (card,) = read(folder).values()
    ModelCard.model_validate(card)
    with pytest.raises(ValidationError):
        ModelCard.model_validate({**card, **change})


def test_a_model_with_two_recipes_has_two_cards(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    store = Store(copy)
    record = next(r for r in store.load()[0] if r.cell.kind == "training")
    recipe = {"name": "given", "weights_sha256": record.card["checkpoint_sha256"]}
    extra = {"given": {"file": "w", "sha256": recipe["weights_sha256"]}, "file": "my net.py:build"}
    cell = dataclasses.replace(record.cell, recipe=recipe, samples=0)
    store.put(dataclasses.replace(record, cell=cell, card={**record.card, **extra}))
    found = cards(store, store.load()[0], "tiny")
    assert set(found) == {"cards/resnet@digits@given.json", "cards/resnet@digits@plain.json"}
    given = json.loads(found["cards/resnet@digits@given.json"])
    assert (given["weights"], given["file"]) == ("given", "my net.py:build")
    weights = store.checkpoint_path(cell).relative_to(copy).as_posix()
    assert given["command"] == (
        f"robustode run --preset tiny.toml --models 'my net.py:build' --weights {weights} --out again"
    )


def test_a_record_that_says_too_little_has_no_card(folder, tmp_path):
    store = Store(Path(shutil.copytree(folder, tmp_path / "copy")))
    for record in store.load()[0]:
        if record.cell.kind == "training":
            store.put(dataclasses.replace(record, card={"summary": "old"}))
    assert cards(store, store.load()[0], "") == {}


def test_verify_names_an_edited_card_and_notes_that_an_old_report_has_none(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "report" / "cards" / "resnet.json"
    path.write_text(path.read_text().replace('"trained"', '"given"'))
    found = [str(finding) for finding in verify(copy, only=()).disagreements]
    assert [line for line in found if line.startswith("report/cards/resnet.json: line ")] == found
    assert len(found) == 1
    shutil.rmtree(path.parent)
    done = verify(copy, only=())
    assert done.disagreements == []
    assert {note.file for note in done.notes} == {"report/cards", "report/figures"}, "neither was drawn here"
    assert main(["report", "--out", str(copy)]) == 0
    assert [file.name for file in path.parent.iterdir()] == ["resnet.json"]
    assert path.read_bytes() == (folder / "report" / "cards" / "resnet.json").read_bytes()


def test_recorded_values_read_as_in_python():
    assert list(map(value_text, ["x", 1, None, True, 0.5])) == ["x", "1", "null", "True", "0.5"]
    assert value_text({"$tuple": [16, {"$tuple": ["a"]}]}) == '(16, ("a",))'
    assert value_text([1, {"b": 2, "a": {"$float": "inf"}}]) == '[1, {"a": inf, "b": 2}]'
    assert value_text({"$name": ".:act"}) == "act"
    assert value_text({"$enum": [{"$name": ".:Head"}, "LARGE"]}) == "LARGE"
    assert value_text({"$range": [0, 3, 1]}) == "range [0, 3, 1]"
