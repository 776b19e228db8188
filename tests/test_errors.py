"""Suggestions for mistyped names."""

from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import UserError, did_you_mean


def test_a_near_miss_is_named():
    assert did_you_mean("cuont_a", ["index_a", "count_a", "token"]) == "; did you mean 'count_a'?"


def test_case_does_not_matter_and_equally_near_names_are_all_named():
    letters = [f"count_{letter}" for letter in "abc"]
    assert did_you_mean("count_A", [*letters, "index_a"]) == "; did you mean 'count_a'?"
    assert did_you_mean("count_x", [*letters, "index_a"]) == "; did you mean one of count_a, count_b, count_c?"


def test_far_off_everything_known_is_listed_in_order():
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"
    assert did_you_mean("zzz", {"b": 1, "a": 2}) == "; known: a, b"
    assert did_you_mean("zzz", iter(())) == "; known: none"


@given(st.text(), st.lists(st.text(min_size=1), unique=True))
def test_a_suffix_is_one_of_the_two_and_names_only_what_is_known(word, known):
    suffix = did_you_mean(word, known)
    suggested = {f"; did you mean {name!r}?" for name in known}
    near = suffix.startswith("; did you mean one of ")
    assert suffix in suggested or near or suffix == f"; known: {', '.join(sorted(known)) or 'none'}"


def test_a_user_error_is_no_other_error():
    """So that `except ValueError` around a library call does not swallow it."""
    assert UserError.__mro__[1] is Exception
