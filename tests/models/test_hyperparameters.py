"""What a record holds of a model's hyperparameters rebuilds the same call, or is refused by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import OrderedDict, namedtuple
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import InvalidArgument
from robustode.bench.records.record import canonical_json
from robustode.models import MODELS, ModelSpec
from torch import nn

Shape = namedtuple("Shape", "rows columns")


class Colour(Enum):
    RED = "r"
    BLUE = (1, 2)


class Level(IntEnum):
    LOW = 1


class Parts(Flag):
    A = 1
    B = 2


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    depth: tuple[int, ...] = (1, 2)


@dataclasses.dataclass
class Computed:
    """Its constructor computes, so that calling it again gives another object."""

    factor: dataclasses.InitVar[float]
    width: int = 4
    depth: int = dataclasses.field(init=False, default=5)

    def __post_init__(self, factor):
        self.width = int(self.width * factor)
        self.hidden = (self.width, factor)


class Doubled(Shape):
    __slots__ = ()

    def __new__(cls, width, depths):
        return super().__new__(cls, 2 * width, depths)


class Noted(Shape):
    """Keeps what its fields do not tell."""


def noted():
    found = Noted(3, (4,))
    found.note = "x"
    return found


def computed():
    found = Computed(2.0)
    found.depth = 9
    return found


def act(x):
    return x


def spec_of(default: object, **attributes: object) -> ModelSpec:
    def build(shape, classes, *, value=default):
        return value

    return ModelSpec(name="stub", build=build, **attributes)


def back(default: object) -> object:
    """What the factory is called with by a record that was written and read."""
    spec = spec_of(default)
    return spec.arguments(json.loads(canonical_json(spec.recorded())))["value"]


def same(one: object, other: object) -> bool:
    """Whether two values are equal, type by type and in order; NaN is itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, functools.partial):
        return same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if callable(one):
        return one is other
    if dataclasses.is_dataclass(one):
        return same(sorted(vars(one).items()), sorted(vars(other).items()))
    return one == other


VALUES = [
    (16, 24), ((1, 2), (3, (4,))), (), [(1,), [2]], {1, 2}, frozenset({"a", "b"}), set(), None, True, 1, 1.0,
    -0.0, 1e-323, math.inf, -math.inf, math.nan, 10**40, complex(1, -math.inf), "", "$tuple", b"\0\xff",
    bytearray(b"x"), ..., Decimal("1.10"), Fraction(1, 3), range(1, 9, 2), slice(None, -1), slice((1, 2)),
    {}, {"b": 1, "a": 2}, {1: "x", (2, 3): None}, {"$tuple": [1]}, {True: 1.5}, OrderedDict(b=(1,), a=2),
    np.float32(0.1), np.float64(0.1), np.int64(-3), np.bool_(True), np.complex64(1 + 2j), np.uint8(255),
    np.arange(6.0).reshape(2, 3), np.zeros((0, 2), np.int16), np.array(2.5), np.datetime64("2026-11-30"),
    torch.float64, torch.bfloat16, torch.channels_last, torch.Size([3, 4]), torch.device("cpu"),
    torch.arange(3), torch.tensor(1.5, dtype=torch.bfloat16), torch.zeros(0, 2), torch.tensor([True, False]),
    torch.tensor([1 + 2j]).conj(), Doubled(3, (4,)), computed(),
    Colour.RED, Colour.BLUE, Level.LOW, Parts.A, Parts.A | Parts.B, Path("a/b"), Path("/nowhere/b"),
    PurePosixPath("c"), Shape(3, (4,)), Size(3), Size(width=1, depth=(5,)), act, Colour, nn.ReLU, torch.tanh,
    torch.nn.functional.gelu, math.sin, np.tanh, int, functools.partial(nn.LeakyReLU, 0.1, inplace=True),
    (nn.ReLU, {"act": torch.relu}),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_default_comes_back_as_it_was(value):
    assert same(back(value), value)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.decimals(allow_nan=False)
    | st.sampled_from([torch.float16, Colour.BLUE, Level.LOW, nn.Tanh, act, Path("x"), ..., range(3)])
)


def hashable_nest(x):
    return st.tuples(x, x) | st.frozensets(x)


hashable = st.recursive(st.none() | st.integers() | st.text() | st.binary(), hashable_nest, max_leaves=4)


def nest(x):
    return (
        st.lists(x)
        | st.lists(x).map(tuple)
        | st.dictionaries(st.text(), x)
        | st.dictionaries(hashable, x)
        | st.dictionaries(st.text(), x).map(OrderedDict)
        | st.sets(hashable)
        | st.frozensets(hashable)
        | st.builds(Size, st.integers(), x)
        | st.builds(Shape, x, x)
    )


values = st.recursive(leaves, nest, max_leaves=8)


@given(values)
def test_whatever_is_nested_comes_back_as_it_was(value):
    assert same(back(value), value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="$")), x),
)


@given(plain)
def test_what_json_holds_by_itself_has_the_key_that_it_had(value):
    def in_order(v):
        if isinstance(v, dict):
            return {k: in_order(v[k]) for k in sorted(v)}
        return [in_order(x) for x in v] if isinstance(v, list) else v

    assert spec_of(in_order(value)).recorded() == {"value": in_order(value)}


def test_the_models_of_the_package_are_recorded_as_before():
    for spec in MODELS:
        assert spec.recorded() == spec.resolve() == spec.arguments(spec.recorded())


def local():
    return lambda x: x


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda x: x, "without a name of its own"),
        (local(), "without a name of its own"),
        ((1, [object()]), "an object of object"),
        (nn.ReLU(), "an object of ReLU"),
        (nn.Parameter(torch.zeros(2)), "an object of Parameter"),
        (torch.zeros(2, requires_grad=True), "has a gradient"),
        (np.array([object()]), "an array of object"),
        (np.zeros(100_000), "more than 65536"),
        (noted(), "an object of Noted"),
        ("\ud800", "UnicodeEncodeError"),
        (open, None),
        (iter([1]), "an object of list_iterator"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_its_name(value, reason):
    if reason is None:
        assert back(value) is value
        return
    with pytest.raises(InvalidArgument, match=f"model stub: hyperparameter 'value' cannot be.*{reason}") as e:
        spec_of(value).resolve()
    assert "\n" not in str(e.value)


def test_what_holds_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidArgument, match="nested too deeply, or holds itself"):
        spec_of(loop).resolve()


def test_two_functions_of_one_name_are_refused():
    def renamed(x):
        return x

    renamed.__qualname__, renamed.__module__ = act.__qualname__, act.__module__
    with pytest.raises(InvalidArgument, match="two different things called"):
        spec_of((act, renamed)).resolve()


def test_a_record_names_nothing_that_the_model_does_not_name_today():
    recorded = spec_of(act).recorded()
    with pytest.raises(InvalidArgument, match="'value' cannot be had again"):
        spec_of(nn.ReLU).arguments(recorded)
    for evil in ({"$name": "os:system"}, {"$partial": [{"$name": "os:system"}, [], {}]}, {"$unknown": [1]}):
        with pytest.raises(InvalidArgument, match="'value' cannot be had again"):
            spec_of(act).arguments({"value": evil})


@pytest.mark.parametrize(
    ("default", "given", "expected"),
    [
        ((16, 24), [8], (8,)),
        ((16, 24), [8, 4, 2], (8, 4, 2)),
        (((1, 2), (3, 4)), [[5, 6], [7, 8], [9]], ((5, 6), (7, 8), (9,))),
        ((), [1, [2]], (1, [2])),
        ([(1, 2)], [[3, 4]], [(3, 4)]),
        ({1, 2}, [3, 3], {3}),
        (frozenset({"a"}), ["b"], frozenset({"b"})),
        ({"a": (1,), 2: (3,)}, {"a": [4], "2": [5]}, {"a": (4,), 2: (5,)}),
        (Shape(1, (2,)), [3, [4]], Shape(3, (4,))),
        (torch.Size([1]), [2, 3], torch.Size([2, 3])),
        (range(3), [1, 5], range(1, 5)),
        (Colour.RED, "BLUE", Colour.BLUE),
        (Colour.BLUE, "r", Colour.RED),
        (Path("a"), "b/c", Path("b/c")),
        (torch.float32, "float64", torch.float64),
        (torch.float32, "torch.float16", torch.float16),
        (torch.strided, "sparse_coo", torch.sparse_coo),
        (torch.contiguous_format, "channels_last", torch.channels_last),
        (torch.device("cpu"), "cuda:1", torch.device("cuda:1")),
        (b"a", "b", b"b"),
        (np.array([0.5], np.float32), [1, 2], np.array([1, 2], np.float32)),
        (torch.tensor([0.5]), [1, 2], torch.tensor([1.0, 2.0])),
        (0.5, 1, 1),
        (1, 2.5, 2.5),
        (None, [1, 2], [1, 2]),
        ("text", "other", "other"),
        ([1], [2, 3], [2, 3]),
    ],
)
def test_an_array_or_text_of_a_preset_becomes_what_the_default_is(default, given, expected):
    spec = spec_of(default)
    found = spec.resolve({"value": given})["value"]
    assert same(found, expected)
    recorded = json.loads(canonical_json(spec.recorded({"value": given})))
    assert same(spec.arguments(recorded)["value"], expected)
    own = spec_of(default, hyperparameters={"value": given})
    assert same(own.resolve()["value"], expected)


@pytest.mark.parametrize("given", ["GREEN", "not-a-dtype", "strided"])
def test_text_that_is_nothing_of_its_kind_is_refused(given):
    for default in (Colour.RED, torch.float32):
        with pytest.raises(InvalidArgument, match=f"hyperparameter 'value' cannot be '{given}'"):
            spec_of(default).resolve({"value": given})


@pytest.mark.parametrize(
    "default", [np.array([1, 2]), np.array([True]), torch.tensor([1, 2], dtype=torch.int8)]
)
@pytest.mark.parametrize("given", [[1.7, 2.9], [2**70]])
def test_numbers_that_are_none_of_the_default_are_refused(default, given):
    with pytest.raises(InvalidArgument, match="hyperparameter 'value' cannot be"):
        spec_of(default).resolve({"value": given})
    assert same(spec_of(default).resolve({"value": [1.0]})["value"], default[:1])


def test_a_list_that_an_older_record_holds_is_the_tuple_of_today():
    assert spec_of((16, 24)).arguments({"value": [8, 4]}) == {"value": (8, 4)}


def test_a_default_that_the_factory_changes_stays_as_it_is_written():
    def build(shape, classes, widths=[1]):  # noqa: B006
        widths.append(classes)
        return list(widths)

    spec = ModelSpec(name="stub", build=build)
    recorded = spec.recorded()
    assert [spec.build((1, 1, 1), 3, **spec.arguments(recorded)) for _ in range(2)] == [[1, 3]] * 2
    assert spec.recorded() == recorded


def test_a_path_beside_the_file_is_recorded_relative_to_it():
    beside = Path(__file__).resolve().parent / "data" / "backbone.npz"
    recorded = spec_of(beside).recorded()
    assert recorded == {"value": {"$path-beside": "data/backbone.npz"}}
    assert back(beside) == beside
    assert spec_of(act).recorded() == {"value": {"$name": ".:act"}}, "the file may move"
