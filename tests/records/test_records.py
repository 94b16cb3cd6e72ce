"""Records: what goes in comes out; what was edited, cut or is unknown is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from robustode._errors import RecordError
from robustode.bench.records.record import (
    SCHEMA_VERSION,
    Cell,
    Record,
    canonical_json,
    decode_array,
    digest,
    encode_array,
    from_json,
    to_json,
)

text = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=12)
number = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), number, text)
mapping = st.dictionaries(text, scalars, max_size=3)
arrays = st.sampled_from([np.bool_, np.uint8, np.int16, np.int64, np.float32, np.float64]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
named_arrays = st.dictionaries(text, arrays, max_size=2)


@st.composite
def cells(draw) -> Cell:
    return Cell(
        kind=draw(st.sampled_from(["training", "throughput"])),
        dataset=draw(text),
        index_sha256=draw(text),
        model=draw(text),
        model_version=draw(text),
        hyperparameters=draw(mapping),
        recipe=draw(mapping),
        training_seed=draw(st.integers(0, 2**31)),
        checkpoint_sha256=draw(st.none() | text),
        parameters=draw(mapping),
        strength=draw(number),
        samples=draw(st.integers(0, 10**6)),
    )


@st.composite
def records(draw) -> Record:
    return Record(
        cell=draw(cells()),
        status=draw(st.sampled_from(["ok", "error", "contract", "nonfinite", "budget", "timeout"])),
        error=draw(st.none() | text),
        outcomes=draw(named_arrays),
        examples=draw(named_arrays),
        measures=draw(st.dictionaries(text, number, max_size=3)),
        card=draw(mapping),
        forwards=draw(st.integers(0, 2**53)),
        nfe=draw(st.none() | number),
        seconds=draw(number),
        environment=draw(mapping),
    )


def sample() -> Record:
    cell = Cell(
        kind="accuracy", dataset="digits", index_sha256="0", model="m", model_version="1",
        threat="pgd-linf", family="gradient", norm="linf", strength=0.1, draws=2, samples=3,
    )  # fmt: skip
    correct = np.array([[True, False, True], [True, True, True]])
    return Record(cell=cell, outcomes={"prediction": np.zeros((2, 3), np.int16), "correct": correct})


@given(records())
def test_what_goes_in_comes_out(record):
    there = to_json(record)
    back = from_json(there)
    assert to_json(back) == there
    assert back.cell == record.cell
    assert back.cell.key() == record.cell.key()
    for name, array in record.outcomes.items():
        np.testing.assert_array_equal(back.outcomes[name], array)
        assert back.outcomes[name].dtype == array.dtype


@given(arrays)
def test_arrays_round_trip_bit_by_bit(array):
    back = decode_array(json.loads(json.dumps(encode_array(array))))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.size == 0 or back.flags.writeable


def test_arrays_are_little_endian_wherever_they_come_from():
    big, little = np.arange(5, dtype=">i4"), np.arange(5, dtype="<i4")
    assert encode_array(big) == encode_array(little)
    strided = np.arange(20, dtype=np.int32)[::4]
    np.testing.assert_array_equal(decode_array(encode_array(strided)), strided)


@given(st.data())
def test_no_single_edit_passes(data):
    """Changing any character either changes nothing that the record says, or is found out."""
    before = to_json(sample())
    where = data.draw(st.integers(0, len(before) - 1))
    what = data.draw(st.sampled_from('0123456789abcxyz"{}[],.:- \n'))
    after = before[:where] + what + before[where + 1 :]
    try:
        record = from_json(after)
    except RecordError:
        return
    assert to_json(record) == before


@pytest.mark.parametrize(
    "name",
    ["status", "error", "outcomes", "examples", "measures", "card", "forwards", "seconds", "environment"],
)
def test_an_edit_by_hand_is_found_out(name):
    body = json.loads(to_json(sample()))
    body[name] = {"status": "error", "error": "x", "forwards": 1, "seconds": 9.0}.get(name, {"x": 1})
    with pytest.raises(RecordError, match="hash does not match its content: edited by hand or damaged"):
        from_json(json.dumps(body))


@given(st.integers(0, len(to_json(sample())) - 2))
def test_no_truncation_passes(length):
    with pytest.raises(RecordError, match="not valid JSON, perhaps truncated"):
        from_json(to_json(sample())[:length])


def edited(**changes) -> str:
    """A record with other values and its hash made to fit, as a program could write it."""
    body = json.loads(to_json(sample()))
    del body["sha256"]
    body.update(changes)
    body = {name: value for name, value in body.items() if value != "remove"}
    body["sha256"] = digest(body)
    return json.dumps(body)


def test_the_helper_above_writes_sound_records():
    assert to_json(from_json(edited())) == to_json(sample())


@pytest.mark.parametrize("version", [0, 2, 999, -1, "1", None, 1.5, [], {}, "remove"])
def test_an_unknown_schema_is_refused_and_named(version):
    with pytest.raises(RecordError, match=r"schema version .* is not known to this robustode"):
        from_json(edited(schema_version=version))


def test_the_schema_is_pinned():
    assert SCHEMA_VERSION == 1
    body = json.loads(to_json(sample()))
    assert set(body) == {
        "backwards", "card", "cell", "environment", "error", "examples", "forwards", "key", "measures", "nfe",
        "outcomes", "schema_version", "seconds", "sha256", "status",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "unknown status 'fine'"),
        ({"status": []}, "unknown status"),
        ({"key": "0" * 64}, "key does not match its cell"),
        ({"key": "remove"}, "not a record: KeyError"),
        ({"cell": {"kind": "accuracy"}}, "not a record: TypeError"),
        ({"cell": 3}, "not a record"),
        ({"surprise": 1}, "not a record: TypeError"),
        ({"outcomes": {}}, r"outcome 'prediction' is missing or not of shape \(2, 3\)"),
        ({"outcomes": {"prediction": {"dtype": "int16", "shape": [2, 3], "data": "?"}}}, "not a record"),
        ({"outcomes": 3}, "not a record"),
    ],
)
def test_a_record_that_says_nonsense_is_refused(changes, message):
    with pytest.raises(RecordError, match=message):
        from_json(edited(**changes))


def test_outcomes_of_another_shape_are_refused():
    record = dataclasses.replace(sample(), cell=dataclasses.replace(sample().cell, samples=4))
    with pytest.raises(RecordError, match=r"not of shape \(2, 4\)"):
        from_json(to_json(record))


@pytest.mark.parametrize("content", ["", "3", "[]", "null", '"x"', "{}", "{", "NaN", "[" * 100_000])
def test_what_is_no_record_is_refused(content):
    with pytest.raises(RecordError):
        from_json(content)


def test_accuracy_is_the_mean_over_draws_and_samples():
    assert sample().accuracy == pytest.approx(5 / 6)
    assert math.isnan(dataclasses.replace(sample(), outcomes={}).accuracy)


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(dataclasses.replace(sample(), seconds=math.nan))


def test_canonical_json_does_not_depend_on_order():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


OTHER = {
    "kind": "throughput", "norm": "l2", "checkpoint_sha256": "c", "solver": "s", "device": "d",
    "hyperparameters": {"a": 1}, "recipe": {"epochs": 3}, "parameters": {"steps": 1}, "strength": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Cell)])
def test_every_field_of_a_cell_is_part_of_its_key(name):
    cell = sample().cell
    value = getattr(cell, name)
    other = OTHER.get(name, value + 1 if isinstance(value, int) else f"{value}x")
    assert dataclasses.replace(cell, **{name: other}).key() != cell.key()


def test_the_key_is_pinned():
    """A stored record is found again only while this does not change."""
    assert sample().cell.key() == "f641aae54b950728d2d9907158c9d9a38a7c5a95dea02b0f73c36436c401e5de"


def test_a_variant_is_the_model_and_not_the_work():
    cell = sample().cell
    for name in ("strength", "training_seed", "samples", "threat"):
        assert dataclasses.replace(cell, **{name: OTHER.get(name, "9")}).variant() == cell.variant()
    for name in ("model_version", "hyperparameters", "recipe"):
        assert dataclasses.replace(cell, **{name: OTHER.get(name, "9")}).variant() != cell.variant()


def test_labels_are_for_people():
    cell = sample().cell
    assert cell.label() == "m seed 0 · pgd-linf 0.1"
    assert dataclasses.replace(cell, kind="training").label() == "m seed 0 · training"
    assert dataclasses.replace(cell, family="clean").label() == "m seed 0 · clean"
    timing = dataclasses.replace(cell, kind="throughput", threat="inference", batch_size=64)
    assert timing.label() == "m seed 0 · inference at batch size 64"
