from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.cli.common import MOST_SEEDS, human_bytes, human_seconds, open_store, parse_seeds, print_json, print_table
from workbench.errors import UserError


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0,1,2", [0, 1, 2]), ("0-4", [0, 1, 2, 3, 4]), ("7, 2-3 ,5", [7, 2, 3, 5]), ("3-3", [3]), (None, None)],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_a_list_of_seeds_is_read_as_written(seeds):
    assert parse_seeds(",".join(map(str, seeds))) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "0,,1", "1.5", "0-", "0-1-2", ",", "0;1"])
def test_what_is_no_list_of_seeds(text):
    with pytest.raises(UserError, match="is not a list of seeds; write 0,1,2 or 0-4"):
        parse_seeds(text)


def test_no_seed_and_too_many():
    with pytest.raises(UserError, match="names no seed"):
        parse_seeds("4-0")
    with pytest.raises(UserError, match=f"names 1000000000000 seeds; {MOST_SEEDS} are the most"):
        parse_seeds("0-999999999999")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def without_nan(value):
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(value=json_values)
def test_json_is_strict_and_says_all_that_can_be_said(value):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_json(value)
    assert json.loads(out.getvalue(), parse_constant=lambda name: pytest.fail(name)) == without_nan(value)
    assert out.getvalue().endswith("\n")


def test_tuples_are_lists(capsys):
    print_json({"a": (1, float("nan"))})
    assert json.loads(capsys.readouterr().out) == {"a": [1, None]}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_200_000, "3.2 MB"), (5e9, "5.0 GB"), (7e13, "70000.0 GB")],
)
def test_bytes(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (45.4, "45 s"), (89, "89 s"), (180, "3 min"), (9000, "2.5 h")])
def test_seconds(seconds, text):
    assert human_seconds(seconds) == text


def test_a_table_shows_brackets_and_aligns_numbers(capsys):
    print_table("Runs", ("name", "n"), [("[red]x[/]", "5"), ("long name", "500")], right=("n",))
    out = capsys.readouterr().out
    assert "[red]x[/]" in out
    assert [line.rstrip().endswith(("  5", "500")) for line in out.splitlines()[-2:]] == [True, True]


def test_the_store_of_an_option(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    assert open_store(None).root == tmp_path / "home"
    assert open_store(Path("/elsewhere")).root == Path("/elsewhere")
