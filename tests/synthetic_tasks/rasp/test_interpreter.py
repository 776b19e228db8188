"""The interpreter: what is missing stays missing, and equal values are one."""

from synthetic_tasks.rasp.interpreter import interpret
from synthetic_tasks.rasp.nodes import INDICES, TOKENS, Aggregate, Map, Mean, NumericalMap, Select, SequenceMap, Width


def same(key, query):
    return key == query


LATER = Select(INDICES, INDICES, lambda key, query: key > query)


def test_width_counts_true_columns():
    assert interpret(Width("later", LATER), "abc") == [2, 1, 0]


def test_predicates_are_called_as_predicate_of_key_and_query():
    assert interpret(Width("smaller", Select(TOKENS, TOKENS, lambda key, query: key < query)), "bca") == [1, 2, 0]


def test_an_aggregate_of_nothing_or_of_different_values_has_no_value():
    last = Aggregate("last", LATER, TOKENS)
    assert interpret(last, "abb") == ["b", "b", None]
    assert interpret(last, "abc") == [None, "c", None]


def test_what_has_no_value_is_neither_mapped_nor_selected():
    last = Aggregate("last", LATER, TOKENS)
    assert interpret(Map("upper", last, str.upper), "abb") == ["B", "B", None]
    assert interpret(SequenceMap("both", last, INDICES, lambda a, i: (a, i)), "abb") == [("b", 0), ("b", 1), None]
    assert interpret(Width("found", Select(last, last, same)), "abb") == [2, 2, 0]


def test_a_mean_of_nothing_is_zero():
    is_a = NumericalMap("is_a", TOKENS, lambda token: 2.0 * (token == "a"))
    assert interpret(Mean("mean", LATER, is_a), "baa") == [2.0, 2.0, 0.0]
    assert interpret(Mean("mean", LATER, is_a), "aab") == [1.0, 0.0, 0.0]
