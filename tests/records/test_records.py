"""Cells and records: keys, labels, and lines that come back as they were or are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
import stubs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from robustode._errors import InvalidArgument, RecordError
from robustode.bench.records.arrays import DRAWN_BITS, decode_array, encode_array, for_drawing, rounded
from robustode.bench.records.lines import SCHEMA, read_line, read_record, write_record
from robustode.bench.records.predictions import outcomes_of, predictions
from robustode.bench.records.record import Cell, Record, canonical_json, digest

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
    prediction = np.array([[0, 4, 2], [0, 1, 2]], np.int16)
    return Record(cell=cell, outcomes=outcomes_of(prediction, np.array([0, 1, 2])))


@given(records())
def test_what_goes_in_comes_out(record):
    back = stubs.stored_again(record)
    assert stubs.lines_of(back) == stubs.lines_of(record)
    assert back.cell == record.cell
    assert back.cell.key() == record.cell.key()
    for field in dataclasses.fields(Record):
        if field.name not in ("outcomes", "examples"):
            assert canonical_json(_plain(getattr(back, field.name))) == canonical_json(
                _plain(getattr(record, field.name))
            )
    for name in ("outcomes", "examples"):
        ours, theirs = getattr(record, name), getattr(back, name)
        assert theirs.keys() == ours.keys() - {"norm"}
        for key, array in theirs.items():
            assert (array.dtype, array.shape, array.tobytes()) == (
                ours[key].dtype,
                ours[key].shape,
                np.ascontiguousarray(ours[key]).tobytes(),
            )


def _plain(value):
    return dataclasses.asdict(value) if isinstance(value, Cell) else value


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


@pytest.mark.parametrize(
    "change", [{0: "float32"}, {1: [5]}, {1: [-1]}, {1: [10**15]}, {2: "?"}, {0: "object"}]
)
def test_an_array_of_another_size_is_refused(change):
    value = encode_array(np.arange(4, dtype=np.float64))
    for place, other in change.items():
        value[place] = other
    with pytest.raises(Exception):  # noqa: B017, PT011  (a record turns each of them into a RecordError)
        decode_array(value)


@given(hnp.arrays(np.float64, 20, elements=st.floats(-1e300, 1e300)))
def test_rounded_numbers_are_near_and_finite(values):
    back = rounded(values, DRAWN_BITS).astype(np.float64)
    assert np.isfinite(back).all()
    normal = (np.abs(values) > 1e-37) & (np.abs(values) < 3e38)
    assert (np.abs(back - values)[normal] <= np.abs(values)[normal] * 2.0**-DRAWN_BITS).all()


def test_time_and_layer_of_drawn_lines_are_not_rounded():
    values = np.linspace(0, 1, 7)
    found = for_drawing({"time": values, "growth_random": values})
    np.testing.assert_array_equal(found["time"], values)
    assert (found["growth_random"] != found["time"]).any()


@given(st.integers(1, 4), st.integers(0, 9), st.integers(2, 400), st.integers(0, 2**32 - 1))
def test_predictions_are_rebuilt_from_the_labels(draws, samples, classes, seed):
    rng = np.random.default_rng(seed)
    labels, prediction = rng.integers(0, classes, samples), rng.integers(0, classes, (draws, samples))
    found = outcomes_of(prediction, labels)
    np.testing.assert_array_equal(found["correct"], prediction == labels)
    assert found["misclassified_as"].dtype == (
        np.int16 if found["misclassified_as"].max(initial=0) > 255 else np.uint8
    )
    np.testing.assert_array_equal(predictions(found, labels), prediction)


def test_classes_of_misclassified_samples_come_sample_by_sample():
    prediction = np.array([[1, 2, 3], [4, 5, 6]])
    assert outcomes_of(prediction, np.array([1, 5, 0]))["misclassified_as"].tolist() == [4, 2, 3, 6]


LINE = stubs.lines_of(sample()).splitlines()[-1]


@given(st.integers(0, len(LINE) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(place, change):
    with pytest.raises(RecordError, match="cut"):
        read_line(LINE[:place] + bytes([LINE[place] ^ change]) + LINE[place + 1 :])


@given(st.integers(0, len(LINE) - 1))
def test_no_truncation_passes(length):
    with pytest.raises(RecordError, match="cut"):
        read_line(LINE[:length])


@pytest.mark.parametrize("content", [b"", b"3", b"[]", b"null", b'"x"', b"{}", b"{", b"NaN", b"[" * 100_000])
def test_what_is_no_line_is_refused(content):
    with pytest.raises(RecordError):
        read_line(content)


def sealed(content: str) -> bytes:
    """A line whose checksum holds, as another program could write it."""
    return f'{{"checksum":"{hashlib.sha256(content.encode()).hexdigest()[:32]}",{content}'.encode()


def edited(**changes) -> Record:
    """The sample with other members under a checksum that holds."""
    *shared, line = map(read_line, stubs.lines_of(sample()).splitlines())
    body = {name: value for name, value in {**line, **changes}.items() if value != "remove"}
    content = f'"schema":{SCHEMA},{json.dumps(body)[1:]}'
    return read_record(read_line(sealed(content)), {one["shared"]: one["content"] for one in shared})


def test_the_helper_above_writes_sound_lines():
    assert stubs.lines_of(edited()) == stubs.lines_of(sample())


@pytest.mark.parametrize("schema", ["1", "3", "999", "-1", '"2"', "null", "2.5", "[]", "{}"])
def test_an_unknown_schema_is_refused_and_named(schema):
    with pytest.raises(InvalidArgument, match=r"schema .* is not known to this robustode"):
        read_line(sealed(f'"schema":{schema},"key":"x"}}'))


def test_a_sound_line_that_is_no_object_is_refused():
    for content in ('"schema":2', '"other":2}', "]", '"schema":2}}'):
        with pytest.raises(RecordError, match="not a line of records"):
            read_line(sealed(content))


STORED = (
    '{"checksum":"5ec3733688d09dd2fe16efd20211a26c","schema":2,"content":{"checkpoint_sha256":null,"dataset":'
    '"digits","dtype":"float32","hyperparameters":{},"index_sha256":"0","model":"m","model_version":"1",'
    '"recipe":{},"solver":null,"training_seed":0},"shared":"0b0ec59f2612"}',
    '{"checksum":"2a4b5c41ba6257afe3048c0e22fd8316","schema":2,"content":{},"shared":"44136fa355b3"}',
    '{"checksum":"5fc4ee520f8a2e5d0dc8d4e4615c5109","schema":2,"cell":["0b0ec59f2612",{"draws":2,"family":'
    '"gradient","kind":"accuracy","norm":"linf","samples":3,"strength":0.1,"threat":"pgd-linf"}],"environment"'
    ':["44136fa355b3",{}],"key":"f641aae54b950728d2d9907158c9d9a3","outcomes":{"correct":["bool",[2,3],'
    '"eNq7AwAA3QDd"],"misclassified_as":["uint8",[1],"eNpjAQAABQAF"]}}',
)


def test_the_schema_is_pinned():
    """What is stored stays readable only while this does not change."""
    *shared, line = (read_line(text.encode()) for text in STORED)
    record = read_record(line, {body["shared"]: body["content"] for body in shared})
    assert stubs.lines_of(record) == stubs.lines_of(sample())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "unknown status 'fine'"),
        ({"status": []}, "unknown status"),
        ({"key": "0" * 32}, "key does not match its cell"),
        ({"key": "remove"}, "not a record: KeyError"),
        ({"cell": ["none", {}]}, r"what it shares with other lines \(none\) is missing"),
        ({"cell": 3}, "not a record"),
        ({"surprise": 1}, "not a record: TypeError"),
        ({"outcomes": {}}, r"outcome 'correct' is missing or not of shape \(2, 3\)"),
        ({"outcomes": {"correct": ["bool", [2, 3], "?"]}}, "not a record"),
        ({"outcomes": {"correct": encode_array(np.ones((2, 3), bool))}}, "outcome 'misclassified_as'"),
        ({"outcomes": 3}, "not a record"),
    ],
)
def test_a_record_that_says_nonsense_is_refused(changes, message):
    with pytest.raises(RecordError, match=message):
        edited(**changes)


def test_outcomes_of_another_shape_are_refused():
    record = dataclasses.replace(sample(), cell=dataclasses.replace(sample().cell, samples=4))
    with pytest.raises(RecordError, match=r"not of shape \(2, 4\)"):
        stubs.stored_again(record)


def test_what_is_shared_is_written_until_there_are_two_copies():
    lines, shared = write_record(sample())
    assert (lines.count(b"\n"), len(shared)) == (3, 2)
    one, two, line = lines.splitlines(True)
    assert write_record(sample(), {}) == (one + two + line + one + two, shared)
    assert write_record(sample(), dict.fromkeys(shared, 1)) == (lines, shared)
    assert write_record(sample(), dict.fromkeys(shared, 2)) == (line, [])


def test_accuracy_is_the_mean_over_draws_and_samples():
    assert sample().accuracy == pytest.approx(5 / 6)
    assert math.isnan(dataclasses.replace(sample(), outcomes={}).accuracy)


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        stubs.lines_of(dataclasses.replace(sample(), seconds=math.nan))


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
