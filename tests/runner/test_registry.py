"""Names: duplicates and unsafe ones refused, a typo answered with suggestions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from robustode._errors import InvalidArgument, UnknownName
from robustode._registry import Registry, check_name, unknown_name


def colours(*names: str) -> Registry:
    registry: Registry = Registry("colour")
    for name in names:
        registry.register(SimpleNamespace(name=name))
    return registry


def test_items_come_back_by_name_and_in_order():
    registry = colours("red", "blue", "amber")
    assert registry.names() == ["red", "blue", "amber"]
    assert [item.name for item in registry] == registry.names()
    assert len(registry) == 3
    assert "blue" in registry
    assert "green" not in registry
    assert registry.get("blue").name == "blue"


def test_a_duplicate_is_refused_and_the_first_one_stays():
    registry = colours("red")
    first = registry.get("red")
    with pytest.raises(InvalidArgument, match="colour 'red' is already registered"):
        registry.register(SimpleNamespace(name="red"))
    assert registry.get("red") is first


def test_a_typo_gets_a_suggestion():
    with pytest.raises(UnknownName, match=r"unknown colour 'rad': did you mean red\?"):
        colours("red", "blue").get("rad")


def test_a_name_near_nothing_lists_what_is_known():
    with pytest.raises(UnknownName, match="known: red, blue"):
        colours("red", "blue").get("zzzzzz")
    assert str(unknown_name("colour", "x", [])) == "unknown colour 'x': known: none"


def test_unregister_forgets_and_does_not_mind_twice():
    registry = colours("red")
    registry.unregister("red")
    registry.unregister("red")
    assert registry.names() == []
    registry.register(SimpleNamespace(name="red"))


@pytest.mark.parametrize(
    "name",
    ["../x", "<b>", "A B", "", "a..b", ".", "..", ".x", "-x", "a/b", "a\\b", "a\n", "É", "a" * 65, None, 3],
)
def test_unsafe_names_are_refused(name):
    with pytest.raises(InvalidArgument, match=r"name .* is not allowed"):
        check_name(name, "model")
    with pytest.raises(InvalidArgument):
        Registry("colour").register(SimpleNamespace(name=name))


@pytest.mark.parametrize("name", ["a", "0", "ch-node", "node_2.1", "a" * 64])
def test_safe_names_are_kept(name):
    assert check_name(name, "model") == name


@given(st.text(alphabet=st.sampled_from("ab0.-_/\\ A<>&\"'\n\0é~"), max_size=8))
def test_an_accepted_name_is_safe_in_a_path_and_in_html(name):
    try:
        check_name(name, "model")
    except InvalidArgument:
        return
    root = Path("/root/folder")
    assert (root / name).resolve().parent == root
    assert not set(name) & set("<>&\"' \n\0/\\")
