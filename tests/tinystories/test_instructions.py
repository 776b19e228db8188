"""Instruction lines: read, written back to the letter, read from records, derived from text, and put in random order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, islice, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

import tinystories
from tinystories.features import RULES, plain_sentences
from tinystories.instructions import (
    LINES,
    SENTENCE_WORDS,
    SEPARATOR,
    Instruction,
    Parsed,
    Record,
    derive,
    parse,
    parse_records,
    prompt,
    render,
)
from workbench.errors import UserError

REAL: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(tinystories.__file__).parent / "sample" / "instruct_prompts.jsonl").read_text("utf-8").splitlines()
]
FULL = Instruction(("Dialogue", "Twist"), ("oak", "quit"), "Sara goes home.", "It was cold.")
STORY = 'Once there was a red boat. It sailed far away. "Stop!" Tom said. Tom liked the boat very much. He learned that boats are fun.'

# Real prompts


def test_there_are_46_real_prompts() -> None:
    assert len(REAL) == 46
    assert sum(row["orphan_previous_summary"] is not None for row in REAL) == 12


@pytest.mark.parametrize("row", REAL, ids=range(len(REAL)))
def test_a_real_prompt_is_read_exactly_and_written_back(row: dict[str, Any]) -> None:
    found = parse(row["raw_prompt"])
    assert found.instruction == Instruction(tuple(row["features"]), tuple(row["words"]), row["summary"], row["random_sentence"])
    assert found.orphan_summary == row["orphan_previous_summary"]
    assert found.story is None
    assert found.sentence_word == "Random sentence"
    assert render(found) == row["raw_prompt"]
    names = {"Features": "features", "Words": "words", "Summary": "summary", "Random sentence": "sentence"}
    kinds = [names[line.partition(":")[0]] for line in row["raw_prompt"].splitlines()[:-1]]
    assert list(found.order) == (kinds[1:] if found.orphan_summary else kinds)


# Round trip

ONE_LINE = (
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1)
    .map(str.strip)
    .filter(lambda x: x and SEPARATOR not in x)
)
ENTRY = ONE_LINE.filter(lambda text: "," not in text)
INSTRUCTIONS = st.builds(
    Instruction,
    st.lists(ENTRY, max_size=4).map(tuple),
    st.lists(ENTRY, max_size=4).map(tuple),
    st.none() | ONE_LINE,
    st.none() | ONE_LINE,
)


@st.composite
def parsed_prompts(draw: st.DrawFn) -> Parsed:
    instruction = draw(INSTRUCTIONS)
    word = draw(st.sampled_from(SENTENCE_WORDS)) if instruction.sentence else SENTENCE_WORDS[0]
    orphan = draw(st.none() | ONE_LINE) if instruction.summary else None
    story = draw(st.none() | st.text(st.characters(exclude_categories=["Cs"])).map(str.strip).filter(bool))
    return Parsed(instruction, tuple(draw(st.permutations(instruction.lines))), word, orphan, story)


@given(parsed_prompts())
def test_what_is_written_is_read_back(parsed: Parsed) -> None:
    text = render(parsed)
    assert parse(text) == parsed
    assert render(parse(text)) == text


def test_other_spacing_is_read_too() -> None:
    text = "\n  Features:Dialogue ,Twist,\r\nSummary:\n\nSentence:  It rained. \nStory:\n\nOnce\n\nupon a time.\n"
    found = parse(text)
    assert found == Parsed(
        Instruction(("Dialogue", "Twist"), sentence="It rained."),
        ("features", "sentence"),
        "Sentence",
        None,
        "Once\n\nupon a time.",
    )
    assert render(found) == "Features: Dialogue, Twist\nSentence: It rained.\nStory: Once\n\nupon a time."


def test_the_first_of_two_summaries_in_front_is_of_the_story_before() -> None:
    found = parse("Summary: Old.\nWords: a\nSummary: New.\nStory: ")
    assert (found.orphan_summary, found.instruction.summary, found.order) == ("Old.", "New.", ("words", "summary"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Feature: Dialogue\nStory: ", "line 1 of the instruction is 'Feature: Dialogue'; did you mean 'Features'?"),
        ("Words: a\nOnce upon a time", "line 2 of the instruction is 'Once upon a time'; known: "),
        ("Words: a", "'Words: a' has no line 'Story:'; end it with one"),
        ("", "has no line 'Story:'"),
        ("Words: a\nWords: b\nStory: ", "line 2 of the instruction is 'Words: b': there is a Words above already; keep one"),
        ("Words: a\nSummary: A.\nSummary: B.\nStory: ", "there is a Summary above already"),
        ("Summary: A.\nSummary: B.\nSummary: C.\nStory: ", "line 3 of the instruction"),
        ("Sentence: A.\nRandom sentence: B.\nStory: ", "line 2 of the instruction"),
    ],
)
def test_a_broken_prompt_is_refused_in_a_sentence(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"features": ("a, b",)},
        {"words": ("",)},
        {"words": (" a",)},
        {"summary": "a\nb"},
        {"summary": ""},
        {"sentence": "a\u2028b"},
    ],
)
def test_an_instruction_that_could_not_be_read_back_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        Instruction(**fields)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"order": ("features",)}, "name each once"),
        ({"order": (*LINES, "words")}, "name each once"),
        ({"sentence_word": "sentence"}, "known: Random sentence, Sentence"),
        ({"instruction": Instruction(words=("a",)), "order": ("words",), "orphan_summary": "Old."}, "orphan summary"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Parsed(**{"instruction": FULL, "order": LINES, **changes})


# Records


def records(text: str) -> tuple[list[Record], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(parse_records(text.splitlines(keepends=True), skipped)), skipped


def test_records_are_read_to_the_separator() -> None:
    found, skipped = records(
        "Features: Dialogue\nWords: quit, oak\nStory: \n\nSara ran.\n\nShe fell.\n<|endoftext|>\n"
        "Story: Tom ran.<|endoftext|>Words: a\nStory:\nEnd."
    )
    assert found == [
        Record(Instruction(("Dialogue",), ("quit", "oak")), "Sara ran.\n\nShe fell."),
        Record(Instruction(), "Tom ran."),
        Record(Instruction(words=("a",)), "End."),
    ]
    assert not skipped


def test_a_summary_below_its_story_is_the_records_own() -> None:
    found, _ = records("Words: a\nStory: \nOne.\nSummary: Of one.\n\n<|endoftext|>\nWords: b\nStory: \nTwo.\n")
    assert found == [Record(Instruction(words=("a",), summary="Of one."), "One."), Record(Instruction(words=("b",)), "Two.")]


def test_a_record_keeps_the_summary_it_has() -> None:
    found, _ = records(
        "Summary: First.\nStory: One.\nSummary: Second.\n<|endoftext|>\nSummary: Third.\nSummary: Own.\nStory: Two."
    )
    assert [(r.instruction.summary, r.story) for r in found] == [("First.", "One."), ("Own.", "Two.")]


def test_a_summary_in_front_of_the_next_record_goes_to_the_one_before() -> None:
    found, _ = records("Words: a\nStory: One.\n<|endoftext|>\nSummary: Of one.\nWords: b\nSummary: Of two.\nStory: Two.")
    assert [r.instruction.summary for r in found] == ["Of one.", "Of two."]


def test_but_not_to_an_earlier_one() -> None:
    found, _ = records("Story: One.\n<|endoftext|>\nWords: a\n<|endoftext|>\nSummary: Of none.\nSummary: Of two.\nStory: Two.")
    assert [r.instruction.summary for r in found] == [None, "Of two."]


def test_what_is_no_record_is_passed_over_and_counted() -> None:
    found, skipped = records(
        "Words: a\n<|endoftext|>\nWords: b\nStory: \n\n<|endoftext|>\n\n<|endoftext|>\nNonsense\nStory: x\n<|endoftext|>\n"
        "Story: One.\nWords: b\nStory: Two.\n<|endoftext|>\nStory: \nSummary: Of nothing.\n<|endoftext|>\nStory: Kept."
    )
    assert [r.story for r in found] == ["Kept."]
    assert skipped == {
        "without a story": 1,
        "with an empty story": 2,
        "with a broken instruction": 1,
        "with instruction lines inside the story": 1,
    }


def test_a_text_in_another_format_is_refused_and_an_empty_one_is_empty() -> None:
    with pytest.raises(UserError, match=r"no instruction with its story \(2 without a story\)"):
        records("Once upon a time.\n<|endoftext|>\nOne day.\n")
    assert records("\n\n") == ([], Counter())


def test_records_are_read_as_they_are_asked_for() -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 4
            yield from ("Words: a\n", "Story: \n", "Once.\n", "<|endoftext|>\n")

    assert list(islice(parse_records(endless()), 100)) == [Record(Instruction(words=("a",)), "Once.")] * 100
    assert taken <= 4 * 102


@given(
    st.lists(st.tuples(INSTRUCTIONS, st.sampled_from(["One.", "One.\n\nTwo.", '"Hi!"'])), min_size=1, max_size=5), st.randoms()
)
def test_records_that_are_written_are_read_back(wanted: list[tuple[Instruction, str]], random: Any) -> None:
    text = "\n<|endoftext|>\n".join(
        render(Parsed(asked, tuple(random.sample(asked.lines, len(asked.lines))), story=story)) for asked, story in wanted
    )
    skipped: Counter[str] = Counter()
    assert list(parse_records(text.split("\n"), skipped)) == [Record(*pair) for pair in wanted]
    assert not skipped


# Derived from text


def test_a_derived_instruction_is_fulfilled_by_its_story() -> None:
    for seed in range(50):
        found = derive(STORY, seed)
        assert found.features == ("Dialogue", "MoralValue")
        assert found.summary is None
        assert 1 <= len(found.words) <= 3
        assert len(set(found.words)) == len(found.words)
        assert set(found.words) <= {"there", "boat", "sailed", "boats"} - {"there"}
        assert found.sentence in {"Once there was a red boat.", "It sailed far away.", "Tom liked the boat very much."}


def test_all_words_sentences_and_numbers_of_words_come_up() -> None:
    found = [derive(STORY, 0, epoch) for epoch in range(300)]
    counts = Counter(len(x.words) for x in found)
    assert chisquare([counts[n] for n in (1, 2, 3)]).pvalue > 1e-4
    sentences = Counter(x.sentence for x in found)
    assert len(sentences) == 3
    assert chisquare(list(sentences.values())).pvalue > 1e-4
    first = Counter(x.words[0] for x in found)
    assert len(first) == 3
    assert chisquare(list(first.values())).pvalue > 1e-4


def test_a_draw_depends_on_text_seed_and_epoch_alone() -> None:
    text = " ".join(f"The animal {a * 4} saw one {b * 5}." for a, b in permutations("bcdfg", 2))
    assert derive(text, 3, 2) == derive(text, 3, 2)
    alone = derive(text, 0)
    derive("Another story came in between.", 0)
    assert derive(text, 0) == alone
    for changed in ([derive(text, s) for s in range(20)], [derive(text, 0, e) for e in range(20)]):
        assert len(set(changed)) > 15


def test_only_the_features_that_are_asked_for_and_are_there() -> None:
    assert derive(STORY, 0, features=("MoralValue", "Question")).features == ("MoralValue",)
    assert derive("Tom sat down.", 0).features == ()
    with pytest.raises(UserError, match="Twist cannot be decided from plain text"):
        derive(STORY, 0, features=("Twist",))


def test_a_text_without_content_gives_no_lines() -> None:
    assert derive("", 0) == Instruction()
    assert derive('"Hi!" said Tom', 0) == Instruction(("Dialogue",))
    assert derive("The cat<|endoftext|>sat.", 0).sentence is None
    assert derive("The cat\x0bsat.", 0) == Instruction()  # a sentence that some readers take for two lines


@given(st.text(alphabet='"“”Aabcdefg \x0b\x85\u2028.?!\n’-,', max_size=80), st.integers(0, 3))
def test_any_text_gives_an_instruction_that_can_be_written_and_read(text: str, seed: int) -> None:
    found = derive(text, seed)
    assert parse(prompt(found, seed, 0, text)).instruction == found
    assert found.sentence is None or found.sentence in plain_sentences(text)
    assert found.features == tuple(name for name in ("Dialogue", "MoralValue") if RULES[name].of(text))
    assert all(word.islower() and len(word) >= 4 and word in text for word in found.words)


def test_words_tell_nothing_of_who_speaks_or_learns() -> None:
    text = "She said it, asked him, shouted, whispered; he learned a lesson, the moral. Don't stop-ping mother's."
    assert set().union(*(derive(text, seed).words for seed in range(30))) == set()


# Put in front


def test_a_prompt_has_the_instructions_lines_and_ends_where_the_story_begins() -> None:
    text = prompt(FULL, 0, 0, "key")
    assert text.endswith("\nStory: ")
    assert parse(text).instruction == FULL
    assert prompt(Instruction(), 0, 0, 1) == "Story: "
    assert "\nSentence: It was cold.\n" in "\n" + prompt(FULL, 0, 0, "key", sentence_word="Sentence")


def test_all_orders_are_equally_likely_over_epochs_and_over_stories() -> None:
    for found in (
        Counter(parse(prompt(FULL, 0, epoch, "key")).order for epoch in range(1200)),
        Counter(parse(prompt(FULL, 0, 0, key)).order for key in range(1200)),
    ):
        assert set(found) == set(permutations(LINES))
        assert chisquare(list(found.values())).pvalue > 1e-4


def test_a_prompt_is_a_function_of_seed_epoch_and_key() -> None:
    assert [prompt(FULL, 1, 2, k) for k in range(20)] == [prompt(FULL, 1, 2, k) for k in range(20)]
    assert [prompt(FULL, 1, 2, k) for k in range(20)] != [prompt(FULL, 2, 2, k) for k in range(20)]


def test_only_lines_of_the_subset_stand() -> None:
    for key in range(20):
        assert set(parse(prompt(FULL, 0, 0, key, ("features", "summary"))).order) == {"features", "summary"}
    assert prompt(FULL, 0, 0, "key", ()) == "Story: "
    with pytest.raises(UserError, match="no lines 'word'; did you mean 'words'"):
        prompt(FULL, 0, 0, "key", ("word",))


def test_where_not_all_need_be_present_every_choice_of_some_is_equally_likely() -> None:
    found = Counter(frozenset(parse(prompt(FULL, 0, 0, key, LINES[:3], all_present=False)).order) for key in range(700))
    assert set(found) == {frozenset(x) for n in (1, 2, 3) for x in combinations(LINES[:3], n)}
    assert chisquare(list(found.values())).pvalue > 1e-4
