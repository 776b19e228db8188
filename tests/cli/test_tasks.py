from __future__ import annotations

import pytest

SMALL = ["--set", "text_length=12", "--set", "window=6", "--set", "families=[count, token]"]


def test_list(cli):
    body = cli("tasks", "list", "--json").json
    assert set(body) == {"tasks", "protocols"}
    assert "pcfg" in body["tasks"]
    assert {"pretraining", "single_operand", "wrong_answers", "other_families"} <= set(body["protocols"])
    assert "tasks: " in cli("tasks", "list").out


def test_show(cli):
    body = cli("tasks", "show", "pcfg", *SMALL, "--json").json
    assert set(body) == {"vocabulary", "context", "capabilities"}
    rows = {row["capability"]: row for row in body["capabilities"]}
    assert {row["family"] for row in rows.values()} == {"count", "token"}
    assert 0 < rows["count_a"]["chance"]["majority"] < 1
    prompt = rows["count_a"]["prompt"].split()
    assert len(" ".join(prompt)) > 12
    assert body["context"] == 12 + 9
    out = cli("tasks", "show", "pcfg", *SMALL).out
    assert f"pcfg: {body['vocabulary']} tokens, sequences of 21" in out
    assert "count_a" in out


def test_sampled_answers_are_true(cli):
    rows = cli("tasks", "sample", "pcfg", "--capability", "count_a", "--n", "20", *SMALL, "--json").json
    assert len(rows) == 20
    for row in rows:
        text = row["prompt"].split("SOT ")[1].split(" ")[0]
        assert int(row["answer"]) == text[-6:].count("a") == row["labels"]["count_a"]
        assert set(row) == {"prompt", "answer", "labels"}


def test_a_sample_is_a_function_of_its_seed(cli):
    def sample(*words: str) -> str:
        return cli("tasks", "sample", "pcfg", "--capability", "count_b", "--n", "3", *SMALL, *words).out

    assert sample() == sample("--seed", "0")
    assert sample() != sample("--seed", "1")
    assert sample().count("answer") == 3


@pytest.mark.parametrize("share", [0, 1])
def test_a_sample_with_a_correlation(cli, share):
    words = ["--capability", "count_b", "--correlation", f"count_a:1:{share}", "--n", "12", *SMALL, "--json"]
    rows = cli("tasks", "sample", "pcfg", *words).json
    held = [row["labels"]["count_b"] == row["labels"]["count_a"] + 1 for row in rows]
    assert held == [bool(share)] * 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "pcfgg"], "there is no task 'pcfgg'; did you mean 'pcfg'?"),
        (["show", "pcfg", "--set", "windw=3"], "'windw'"),
        (["show", "pcfg", "--set", "window"], "has no '='"),
        (["show", "pcfg", "--set", "window=99"], "'window' is 99"),
        (["show", "pcfg", "--set", "families=[nope]"], "there is no task family 'nope'"),
        (["sample", "pcfg", "--capability", "count_z"], "no capability 'count_z'; did you mean"),
        (["sample", "pcfg", "--capability", "count_a", "--correlation", "count_b"], "is not PARTNER:OFFSET:SHARE"),
        (["sample", "pcfg", "--capability", "count_a", "--correlation", "count_b:x:1"], "is not PARTNER:OFFSET:SHARE"),
        (["sample", "pcfg", "--capability", "count_a", "--correlation", "count_b:1:2"], "share 2.0 is outside [0, 1]"),
        (["sample", "pcfg", "--capability", "count_a", "--correlation", "count_a:1:1"], "with itself"),
        (["sample", "pcfg", "--capability", "count_a", "--correlation", "count_b:100:1"], "offset 100"),
    ],
)
def test_bad_input_is_one_sentence(cli, words, message):
    assert message in cli("tasks", *words).sentence
