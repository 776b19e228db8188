"""Suggestions for mistyped names."""

from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import UserError, did_you_mean


def test_a_near_miss_is_named():
    assert did_you_mean("cuont_a", ["index_a", "count_a", "token"]) == "; did you mean 'count_a'?"


def test_far_off_everything_known_is_listed_in_order():
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"
    assert did_you_mean("zzz", {"b": 1, "a": 2}) == "; known: a, b"
    assert did_you_mean("zzz", iter(())) == "; known: none"


@given(st.text(), st.lists(st.text(min_size=1), unique=True))
def test_a_suffix_is_one_of_the_two_and_names_only_what_is_known(word, known):
    suffix = did_you_mean(word, known)
    suggested = [name for name in known if suffix == f"; did you mean {name!r}?"]
    assert suggested or suffix == f"; known: {', '.join(sorted(known)) or 'none'}"


def test_a_user_error_is_no_other_error():
    """So that `except ValueError` around a library call does not swallow it."""
    assert UserError.__mro__[1] is Exception
