"""Labels of stories: which characters make a quotation, what the rules find, and what they found in 19,168 real stories."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystories import features
from tinystories.features import (
    FROM_TEXT,
    INSTRUCT_FEATURES,
    ONLY_INSTRUCT,
    RULES,
    check_feature,
    inside_quotes,
    is_balanced,
    labels,
    last_sentences,
    phrase,
    plain_sentences,
    quotations,
    repair,
    token_labels,
)
from workbench.errors import UserError

MARKED = st.text(alphabet='"“”ab 1.?!\n-', max_size=40)


def quoted(text: str) -> list[str]:
    return [text[start:end] for start, end in quotations(text)]


# Quotations


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Tom said, "Hi." Then "Bye."', ['"Hi."', '"Bye."']),
        ("Tom said, “Hi.” She left.", ["“Hi.”"]),
        ('mixed “Hi." and "Ho.”', ['“Hi."', '"Ho.”']),
        ('a sign with "4"', ['"4"']),
        ('nothing said: "..." and ""', []),
        ('a pair of nothing "!" pairs off: "Hi"', ['"Hi"']),
        ("an opener without end: “One. “Two.”", ["“Two.”"]),
        ("a closer without start” and “more”", ["“more”"]),
        ('one left open: "Hi. He left.', []),
        ('a lone one turns all after it around: " Tom said, "Hi."', ['" Tom said, "']),
        ('over\n\nparagraphs "One.\n\nTwo."', ['"One.\n\nTwo."']),
        ("'single quotes' do not count", []),
    ],
)
def test_a_quotation_is_a_pair_of_double_quotes_with_a_letter_or_digit_between(text: str, found: list[str]) -> None:
    assert quoted(text) == found


def scanned(text: str) -> list[tuple[int, int]]:
    """The same rule, character by character."""
    found, start = [], None
    for i, c in enumerate(text):
        if c == "“" or (c == '"' and start is None):
            start = i
        elif c in '"”' and start is not None:
            if any(x.isalnum() for x in text[start:i]):
                found.append((start, i + 1))
            start = None
    return found


@given(MARKED)
def test_quotations_are_what_a_scanner_finds(text: str) -> None:
    assert quotations(text) == scanned(text)


@given(MARKED)
def test_inside_starts_with_the_opening_mark_and_ends_before_the_closing_one(text: str) -> None:
    inside = inside_quotes(text)
    assert inside.dtype == bool
    expected = [any(start <= i < end - 1 for start, end in scanned(text)) for i in range(len(text))]
    assert inside.tolist() == expected


@pytest.mark.parametrize(
    ("text", "balanced"),
    [('"a" “b”', True), ('"a', False), ("“a", False), ('“a"', False), ("plain", True), ('"“a”"', True)],
)
def test_balance_is_of_each_kind_of_mark(text: str, balanced: bool) -> None:
    assert is_balanced(text) is balanced


def test_a_token_is_inside_by_its_last_character() -> None:
    text = 'He said, "Hi there." He left.'
    pieces = ["He", " said", ",", ' "', "Hi", " there", '."', " He", " left", "."]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    told = token_labels(text, offsets)
    assert [p for p, inside in zip(pieces, told, strict=True) if inside] == [' "', "Hi", " there"]


def test_a_token_of_no_characters_is_outside() -> None:
    assert token_labels('"Hi"', [(0, 0), (0, 1), (2, 2), (1, 3), (3, 4)]).tolist() == [False, True, False, True, False]
    assert token_labels("", []).shape == (0,)


def test_offsets_of_another_text_are_refused() -> None:
    with pytest.raises(UserError, match=r"offset is \(2, 9\) but the text has 4 characters"):
        token_labels('"Hi"', [(0, 2), (2, 9)])


# Repair


def test_damaged_marks_become_whole() -> None:
    damaged = "â€œIt is Tomâ€™s,â€ he said â€“ or â€” â€˜yesâ€¦â€\x9d"
    assert repair(damaged) == "“It is Tom’s,” he said – or — ‘yes…”"


@given(st.text(alphabet='â€œ™“”"a–', max_size=30))
def test_repair_leaves_nothing_damaged_and_repeats_nothing(text: str) -> None:
    assert "â€" not in repair(text)
    assert repair(repair(text)) == repair(text)


@given(st.text(alphabet='“”’‘–—…ab "', max_size=30))
def test_text_that_was_damaged_as_the_data_was_becomes_what_it_had_been(text: str) -> None:
    damaged = "".join(c.encode().decode("cp1252", errors="ignore") for c in text)  # the byte 9D is lost
    assert repair(damaged) == text
    assert repair(text) == text


# Sentences


def test_plain_sentences_stand_outside_quotations() -> None:
    text = (
        'One day, Mr. Fox ran off. "Stop! Come back!" Tom said. He did not. He waited... and went on.\n'
        'Tom asked, "Why?" and sat down.\nIt was late! no capital. Splash! The end'
    )
    assert plain_sentences(text) == [
        "One day, Mr. Fox ran off.",
        "He did not.",
        "He waited... and went on.",
        "It was late! no capital.",
    ]


@given(st.text(alphabet='"“”Aab .?!\n', max_size=60))
def test_plain_sentences_are_pieces_of_the_text_without_quotation(text: str) -> None:
    at = 0
    inside = inside_quotes(text)
    for sentence in plain_sentences(text):
        at = text.index(sentence, at)
        assert not inside[at : at + len(sentence)].any()
        assert not set(sentence) & set('"“”\n')
        assert sentence == sentence.strip()
        assert sentence[0].isupper()
        assert sentence[-1] in ".?!"
        at += len(sentence)


def test_a_line_without_full_stop_is_no_part_of_the_next() -> None:
    assert plain_sentences("The Red Boat\nOne day it sank.") == ["One day it sank."]


def test_last_sentences() -> None:
    assert last_sentences('One. "Two!" Three? Four.\n', 2) == "Three? Four."


# Rules


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("Dialogue", '"Hi," said Tom.', "Tom said hi."),
        ("Question", 'Tom said, "Why?"', 'Why? Tom said, "Because."'),
        ("Speech", 'Tom said, "I will!"', 'The sign said "Stop".'),
        ("Speech", 'Tom said, "I will - "', 'The dog was named "A.B"'),
        ("MoralValue", "x" * 60 + " The moral is: share.", "The moral is: share. " + "x" * 60),
        (
            "MoralValue",
            "x" * 99 + " Tom fell. He had learned a very important lesson.",
            "x" * 99 + " Tom fell. He learned to swim.",
        ),
        (
            "MoralValue",
            "x" * 99 + " Tom and Sue played. They learned that sharing is good.",
            "x" * 99 + " Tom and Sue played. They unlearned that.",
        ),
        ("BadEnding", "Tom was happy. He fell. He was sad.", "Tom was sad. He ran. He was glad."),
        (
            "BadEnding",
            "He was sad. The sun set. It was a bad ending. All left. The end.",
            "The sad lamb was fine. He sadly left. The end.",
        ),
        ("BadEnding", "It was gone. He never found it.", "It was gone. He never forgot it."),
        ("Surprise", "But then, it fell.", "Then it fell."),
        ("Surprise", "To her surprise it flew.", "It was a surprise."),
    ],
)
def test_what_a_rule_finds_and_what_not(name: str, yes: str, no: str) -> None:
    assert labels(yes)[name]
    assert not labels(no)[name]


@given(MARKED)
def test_speech_and_questions_are_dialogue(text: str) -> None:
    found = labels(text)
    assert found["Dialogue"] or not (found["Speech"] or found["Question"])


def test_only_properties_of_the_characters_call_themselves_exact() -> None:
    assert {name for name, rule in RULES.items() if rule.exact} == {"Dialogue", "Question", "Speech"}
    assert all(name == rule.name and "\n" not in rule.statement for name, rule in RULES.items())
    assert "not a twist" in RULES["Surprise"].statement


@pytest.mark.parametrize("name", list(RULES))
def test_a_sure_negative_is_never_a_positive(name: str) -> None:
    rule = RULES[name]
    texts = [
        '"Hi?"',
        "The moral.",
        "He was sad.",
        "Suddenly.",
        "He knew a lesson.",
        "It was a good day.",
        "He learned to swim.",
    ]
    assert not any(rule.of(text) and rule.surely_not(text) for text in texts)
    assert any(rule.surely_not(text) for text in texts)


def test_a_text_that_speaks_of_learning_is_no_clean_negative_of_morals() -> None:
    text = "x. He learned to share."
    assert not RULES["MoralValue"].of(text)
    assert not RULES["MoralValue"].surely_not(text)


# Names


def test_every_feature_has_a_name_that_is_accepted_and_a_phrase() -> None:
    assert {*FROM_TEXT, *ONLY_INSTRUCT} == set(INSTRUCT_FEATURES)
    for name in (*INSTRUCT_FEATURES, *RULES):
        check_feature(name)
        assert phrase(name)


def test_an_unknown_feature_is_refused_with_the_nearest_and_where_features_come_from() -> None:
    with pytest.raises(
        UserError,
        match=r"no feature 'dialog'; did you mean 'Dialogue'\?.*Twist.* come only with the labels of TinyStoriesInstruct",
    ):
        check_feature("dialog")


@pytest.mark.parametrize("name", ONLY_INSTRUCT)
def test_what_plain_text_does_not_tell_is_refused_there(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} cannot be decided from plain text.*or Dialogue, Question"):
        check_feature(name, plain=True)


@pytest.mark.parametrize("name", FROM_TEXT)
def test_what_plain_text_tells_is_accepted_there(name: str) -> None:
    check_feature(name, plain=True)


# Real stories


@pytest.fixture(scope="module")
def stories() -> list[str]:
    path = Path(os.environ.get("REVIVAL_DATA", "")) / "tinystories" / "stories.jsonl.gz"
    if not os.environ.get("REVIVAL_DATA") or not path.exists():
        pytest.skip("set REVIVAL_DATA to the folder with tinystories/stories.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def test_counts_of_real_stories(stories: list[str]) -> None:
    """As counted when the stories were collected; MoralValue and BadEnding are rules of our own, so their counts are too."""
    told = [labels(text) for text in stories]
    counts = {name: sum(label[name] for label in told) for name in RULES}
    assert counts == {
        "Dialogue": 12_447,
        "Question": 6_501,
        "Speech": 12_241,
        "MoralValue": 2_734,
        "BadEnding": 1_043,
        "Surprise": 4_415,
    }
    assert sum(len(quotations(text)) > 1 for text in stories) == 10_112
    assert sum(not is_balanced(text) for text in stories) == 82


def test_counts_of_repaired_stories(stories: list[str]) -> None:
    whole = [repair(text) for text in stories]
    changed = [new for new, old in zip(whole, stories, strict=True) if new != old]
    assert len(changed) == 144
    assert (
        sum(not is_balanced(text) for text in changed) == 6
    )  # 7 with two hair spaces (`onâ€Š/â€Šoff`) taken for closing quotes
    assert sum(RULES["Dialogue"].of(text) for text in whole) == 12_545


def test_counts_of_markers(stories: list[str]) -> None:
    """The markers one by one, through the very patterns that the rules are made of."""
    lower = [text.lower() for text in stories]
    found = [{m.lower() for m in features.MORAL.findall(text)} for text in stories]
    assert sum(bool(f & {"the moral", "moral of the story"}) for f in found) == 975
    assert sum("learned that" in f for f in found) == 1_581
    assert sum("learned a lesson" in f for f in found) == 99
    without_her = [words for words in features.SURPRISES if words not in ("to her surprise", "to their surprise")]
    assert sum(any(words in text for words in without_her) for text in lower) == 4_354
    ends = [last_sentences(text).lower() for text in stories]
    assert sum(features._BAD.search(end) is not None for end in ends) == 2_208
    assert sum("bad ending" in text for text in lower) == 121
