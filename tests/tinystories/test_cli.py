from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import calling
import pytest

from tinystories.corpus import load_corpus
from tinystories.features import labels
from tinystories.instructions import parse
from workbench.statistics import wilson


@pytest.fixture
def cli(monkeypatch, capsys):
    """`cli("show", ...) -> (exit code, out, err)`, whether or not the package was installed with this command."""
    point = EntryPoint("stories", "tinystories.cli:app", "workbench.commands")
    monkeypatch.setattr("workbench.cli.contributed.entry_points", lambda group: [point])

    def call(*words):
        return calling.call(monkeypatch, capsys, "stories", *words)

    return call


@pytest.fixture
def told(cli):
    def call(*words):
        code, out, err = cli(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


@pytest.fixture
def damaged_labels(tmp_path):
    """Two records of the instruct format, and one piece that is none."""
    stories = [f'Features: Dialogue, Twist\nWords: ball, tree\nStory: Tom {i} had a ball. He said, "Hi".' for i in range(40)]
    (tmp_path / "told.txt").write_text("\n<|endoftext|>\n".join([*stories, stories[0], stories[0].upper()]))
    return tmp_path / "told.txt"


def test_prepare_counts_what_is_there(told):
    body = told("prepare", "sample", "--tokenizer", "600")
    corpus = load_corpus("sample")
    assert body["sha256"] == corpus.sha256
    assert body["vocabulary"] == 600
    assert body["leaked_between_splits"] == 0
    assert sum(row["stories"] for row in body["sources"]) == len(corpus) == body["counts"]["kept"]
    for split, row in body["splits"].items():
        stories = list(corpus.texts(split))
        assert row["stories"] == len(stories)
        assert row["tokens_per_story"] == row["tokens"] / len(stories)
        of_split = [r for r in body["sources"] if r["split"] == split]
        assert sum(r["words"] for r in of_split) == sum(len(text.split()) for text in stories)
        with_dialogue = sum(labels(text)["Dialogue"] for text in stories)
        assert sum(r["dialogue"] * r["stories"] for r in of_split) == pytest.approx(with_dialogue)
    row = body["sources"][0]
    low, high = wilson(row["dialogue"] * row["stories"], row["stories"])
    assert (row["dialogue_low"], row["dialogue_high"]) == (float(low), float(high))


def test_prepare_makes_what_a_study_then_finds(told):
    from pathlib import Path

    from workbench.protocols import load_task

    body = told("prepare", "sample", "--tokenizer", "600")
    before = {split: (Path(row["kept"]) / "tokens.npy").stat().st_mtime_ns for split, row in body["splits"].items()}
    task = load_task({"kind": "stories", "tokenizer": 600})
    for split, row in body["splits"].items():
        assert str(task.store(split).folder) == row["kept"]
        assert task.store(split).n_tokens == row["tokens"]
        assert (Path(row["kept"]) / "tokens.npy").stat().st_mtime_ns == before[split]


def test_prepare_prints_a_table(cli, told):
    code, out, err = cli("prepare", "--tokenizer", "600")
    assert (code, err) == (0, "")
    body = told("prepare", "--tokenizer", "600")
    for row in body["sources"]:
        assert f"{row['dialogue']:.2f} [{row['dialogue_low']:.2f}, {row['dialogue_high']:.2f}]" in out
    assert "validation and test stories that are also in another split: 0" in out
    assert f"{body['splits']['train']['tokens']:,}" in out
    assert "tokenizer: 600 ids" in out


def test_repeats_are_counted_and_a_limit_is_kept(told, tmp_path):
    lines = [json.dumps({"text": f"Story number {i} about a cat named {'abcdefgh'[i % 8]}."}) for i in range(60)]
    (tmp_path / "many.jsonl").write_text("\n".join([*lines, *lines[:5]]))
    tokenizer = told("prepare", "sample", "--tokenizer", "600")["tokenizer"]
    body = told("prepare", tmp_path / "many.jsonl", "--tokenizer", tokenizer)
    assert (body["counts"]["kept"], body["counts"]["repeated"]) == (60, 5)
    body = told("prepare", tmp_path / "many.jsonl", "--tokenizer", tokenizer, "--limit", "10")
    assert body["counts"]["kept"] == 10
    assert set(body["splits"]) == {s for s in ("train", "validation", "test") if any(r["split"] == s for r in body["sources"])}


def test_reading_is_told_as_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("tinystories.corpus.TOLD_EVERY", 10)
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps({"text": f"A story {i}."}) for i in range(25)))
    told = []
    load_corpus(str(tmp_path / "few.jsonl"), on_read=told.append)
    assert told == [0, 10, 20]
    load_corpus(str(tmp_path / "few.jsonl"), on_read=lambda n: pytest.fail("it was read before"))


def test_show_prints_stories_with_what_rules_see(told, cli):
    rows = told("show", "-n", "5", "--split", "train")
    stories = load_corpus("sample").split("train")
    assert len({row["story"] for row in rows}) == 5
    for row in rows:
        assert row["text"] == stories[row["story"]]["text"]
        assert row["source"] == stories[row["story"]]["source"]
        assert row["rules"] == [name for name, found in labels(row["text"]).items() if found]
    _, out, _ = cli("show", "-n", "5", "--split", "train")
    assert all(row["text"] in out and f"from {row['source']}" in out for row in rows)
    assert rows == told("show", "-n", "5", "--split", "train", "--seed", "0")
    assert rows != told("show", "-n", "5", "--split", "train", "--seed", "1")


@pytest.mark.parametrize(("feature", "has"), [("dialogue", True), ("no_dialogue", False)])
def test_show_only_stories_with_a_feature(told, feature, has):
    rows = told("show", "-n", "8", "--feature", feature)
    assert len(rows) == 8
    assert {"Dialogue" in row["rules"] for row in rows} == {has}


def test_instructions_are_those_that_training_draws(told):
    from workbench.protocols import load_task

    task = load_task({"kind": "stories", "tokenizer": 600})
    rows = told("show", "-n", "4", "--instructions", "--seed", "3")
    assert [row["instruction"] for row in rows] == [task.told("test", 3).text(row["story"]) for row in rows]
    assert all(parse(row["instruction"]).instruction.lines for row in rows)


def test_labels_of_a_corpus_are_shown_beside_the_rules(told, cli, damaged_labels):
    rows = told("show", damaged_labels, "--split", "train", "--feature", "twist", "--instructions")
    assert all(row["labels"] == ["Dialogue", "Twist"] and "Words: ball, tree\n" in row["instruction"] for row in rows)
    assert "labels: Dialogue, Twist" in cli("show", damaged_labels, "--split", "train")[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show", "--feature", "dialog"], "no capability 'dialog'; did you mean 'dialogue'?"),
        (["show", "--feature", "twist"], "no capability 'twist'"),
        (["show", "--split", "trian"], "a corpus has no split 'trian'; did you mean 'train'?"),
        (["show", "nothing.txt"], "there is no file or folder 'nothing.txt'"),
        (["prepare", "sample", "--revision", "main"], "is not on the hub; leave it out"),
        (["prepare", "sample", "--tokenizer", "100"], "vocab_size is 100; a vocabulary of stories has 512 to 8192 tokens"),
        (["prepare", "sample", "--tokenizer", "/nowhere"], "there is no tokenizer folder '/nowhere'"),
    ],
)
def test_bad_input_is_one_sentence(cli, words, sentence):
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_the_command_costs_nothing_before_it_is_called():
    code = "import sys, tinystories.cli; print([m for m in ('torch', 'pandas', 'datasets', 'tokenizers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
