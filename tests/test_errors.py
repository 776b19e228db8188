"""Suggestions for mistyped names, and pydantic's errors in our words."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, field_validator

from workbench.errors import UserError, complaint, did_you_mean


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


class Inner(BaseModel):
    goals: tuple[Literal["x", "y"], ...] = ()
    share: float = Field(0.5, ge=0, le=1)


class Outer(BaseModel):
    n: int = Field(3, gt=2, lt=9)
    on: bool = True
    name: str = ""
    inner: Inner = Inner()
    odd: int = 1

    @field_validator("odd")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} is even; add one")
        return value


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"n": 2}, "n is 2: it must be more than 2."),
        ({"n": 9}, "n is 9: it must be less than 9."),
        ({"n": "many"}, "n is 'many': it must be a whole number."),
        ({"n": 3.5}, "n is 3.5: it must be a whole number."),
        ({"inner": {"share": 2}}, "inner.share is 2: it must be at most 1."),
        ({"inner": {"share": "half"}}, "inner.share is 'half': it must be a number."),
        ({"inner": {"goals": ["x", "z"]}}, "inner.goals[1] is 'z': it must be 'x' or 'y'."),
        ({"inner": {"goals": "x"}}, "inner.goals is 'x': it must be a list, such as [a, b]."),
        ({"inner": 5}, "inner is 5: it must be a section, such as {key: value}."),
        ({"on": "perhaps"}, "on is 'perhaps': it must be true or false."),
        ({"name": 5}, "name is 5: it must be text."),
        ({"odd": 4}, "odd: 4 is even; add one."),
    ],
)
def test_what_pydantic_refuses_is_said_in_a_sentence(body, sentence):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(body)
    assert complaint(caught.value.errors()[0]) == sentence


def test_a_long_value_is_cut():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"n": "x" * 500})
    assert len(complaint(caught.value.errors()[0])) < 130
