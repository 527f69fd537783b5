"""Nested settings compared key by key."""

from delta_common.differences import differences, flatten


def test_nested_values_are_named_by_dotted_keys_and_lists_stay_whole() -> None:
    assert flatten({"a": 1, "b": {"c": [1, {"d": 2}], "e": {"f": None}}, "g": {}}) == {
        "a": 1,
        "b.c": [1, {"d": 2}],
        "b.e.f": None,
    }


def test_what_differs_is_said_in_the_order_of_the_keys_with_none_where_unset() -> None:
    found = {"rows": {"count": 3, "mode": "packed"}, "old": 1, "same": 0}
    wanted = {"new": True, "rows": {"count": 4, "mode": "packed"}, "same": 0}
    assert list(differences(found, wanted)) == [("rows.count", 3, 4), ("old", 1, None), ("new", None, True)]


def test_equal_values_differ_in_nothing() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1}})) == []
