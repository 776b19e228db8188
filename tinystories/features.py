"""What a story has and has not, read off its characters: dialogue exactly, morals and bad endings by their usual words.

A rule that is `exact` decides a property of the characters. One that is not finds words that often go with the property; what
it misses is not thereby absent, and whoever reports it must say so. Rules read the text as it stands: `repair` it first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from workbench.errors import UserError, did_you_mean

INSTRUCT_FEATURES = ("Twist", "Foreshadowing", "Dialogue", "BadEnding", "MoralValue", "Conflict")
"""The features of TinyStoriesInstruct."""
FROM_TEXT = ("Dialogue", "MoralValue")
"""Those that plain text gives too."""
ONLY_INSTRUCT = tuple(name for name in INSTRUCT_FEATURES if name not in FROM_TEXT)
"""Those that only the instruct set's own labels give."""

_DAMAGED = re.compile("â€([œ™“”˜¦Š\x9d]?)")
_WHOLE_CHARACTER = {"œ": "“", "™": "’", "“": "–", "”": "—", "˜": "‘", "¦": "…", "Š": "\u200a", "\x9d": "”", "": "”"}
"""By its third byte; a closing quote's, 9D, is no character of Windows-1252 and was mostly lost."""
_PAIR = re.compile(r'["“][^"“”]*["”]')
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
# Where a sentence ends: not behind Mr., not before a small letter; or the end of a line.
_END = re.compile(r"[.!?](?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)['’]?(?=\s|\Z)(?! +[a-z])|\n")
_WHOLE = re.compile(r'\s*([A-Z0-9][^"“”]* [^"“”]*)')
_SPEECH_ENDS = ".!?,-–—…"
_LAST_SENTENCES = 2
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])[\"”']*\s+")
MORAL = re.compile(r"\b(?:the moral|moral of the story|learned that|learn(?:ed|t) (?:\w+ ){1,4}?lessons?)\b", re.IGNORECASE)
"""Markers of a moral; `learned to` is not one, for it often introduces a skill."""
_ANY_MORAL = re.compile(r"\b(?:learn|lesson|moral)", re.IGNORECASE)
_BAD = re.compile(r"\b(?:sad|cried|sorry|lost|never)\b", re.IGNORECASE)
_HAPPY = re.compile(
    # the last two: "never forgot" and "never give up" end well
    r"happ|smil|friend|laugh|glad|proud|love|\bfun\b|joy|\bsafe|better|hug|cheer|thank|kind|excit|special|good|forg[eo]t|g[ia]ve up",
    re.IGNORECASE,
)
_SAYS_BAD = re.compile(r"\bbad ending", re.IGNORECASE)
SURPRISES = ("suddenly", "but then", "it was not", "turned out", "to his surprise", "to her surprise", "to their surprise")


def repair(text: str) -> str:
    """The text with its damaged curly quotes, dashes, ellipses and hair spaces whole: UTF-8 that was read as Windows-1252.

    Read once from left to right, so that quotes side by side do not run together. Repairing twice is repairing once.
    """
    return _DAMAGED.sub(lambda m: _WHOLE_CHARACTER[m[1]], text)


def quotations(text: str) -> list[tuple[int, int]]:
    """Spans `(start, end)` of the quotations, both marks included, in order and without overlap.

    Read from left to right, `"` or `“` opens and the next `"` or `”` closes, whichever kind opened. A `“` before that
    opens anew, so that of several openers the last counts. A `”` with nothing open and an opener that nothing closes are no
    part of any quotation, but a lone `"` is paired with the next one, so that all after it is turned inside out; `is_balanced`
    tells. Line breaks do not matter. A pair with no letter or digit between is paired off, and is no quotation.
    """
    return [m.span() for m in _PAIR.finditer(text) if _LETTER_OR_DIGIT.search(m.group())]


def is_balanced(text: str) -> bool:
    """Whether straight double quotes are even in number and curly openers as many as curly closers."""
    return text.count('"') % 2 == 0 and text.count("“") == text.count("”")


def inside_quotes(text: str) -> Bool[np.ndarray, " characters"]:
    """Per character, whether one is inside a quotation after having read it: the opening mark is inside, the closing one not."""
    inside = np.zeros(len(text), bool)
    for start, end in quotations(text):
        inside[start : end - 1] = True
    return inside


def token_labels(text: str, offsets: Sequence[tuple[int, int]]) -> Bool[np.ndarray, " tokens"]:
    """Per token, whether one is inside a quotation after having read it, by its last character; an empty span is outside.

    Args:
        text: the story.
        offsets: `(start, end)` of each token in characters of `text`, as tokenizers give them.

    Raises:
        UserError: when a token ends outside the text.
    """
    ends = np.array([end if end > start else 0 for start, end in offsets], np.int64)
    if (ends > len(text)).any():
        span = offsets[int(np.argmax(ends > len(text)))]
        raise UserError(f"a token's offset is {tuple(span)} but the text has {len(text)} characters; give offsets of this text")
    return np.append(False, inside_quotes(text))[ends]


def last_sentences(text: str, count: int = _LAST_SENTENCES) -> str:
    """The last sentences of a text, cut at white space after `.`, `!` or `?` and closing quotes."""
    return " ".join(part for part in _SENTENCE_BREAK.split(text.strip())[-count:] if part)


def plain_sentences(text: str) -> list[str]:
    """The sentences of two words and more outside quotations, in order: from a capital or digit to `.`, `!` or `?`, within one line.

    What stands in one sentence with a quotation is left out, and so is the rest of a sentence behind one (`"Hi!" Tom said.`);
    a sentence right behind a quotation cannot be told from such a rest and is left out too.
    """
    masked = _PAIR.sub(lambda m: '"' * len(m.group()), text)  # same offsets; what is said loses its full stops
    found: list[str] = []
    start = 0
    for end in _END.finditer(masked):
        if end.group() != "\n" and (whole := _WHOLE.fullmatch(masked, start, end.end())):
            found.append(text[whole.start(1) : whole.end(1)])
        start = end.end()
    return found


def _is_dialogue(text: str) -> bool:
    return bool(quotations(text))


def _has_question(text: str) -> bool:
    return any("?" in text[start:end] for start, end in quotations(text))


def _has_speech(text: str) -> bool:
    return any(text[start : end - 1].rstrip()[-1] in _SPEECH_ENDS for start, end in quotations(text))


def _has_moral(text: str) -> bool:
    return MORAL.search(text, 2 * len(text) // 3) is not None


def _ends_badly(text: str) -> bool:
    end = last_sentences(text)
    return bool((_BAD.search(end) and not _HAPPY.search(end)) or _SAYS_BAD.search(text))


def _has_surprise(text: str) -> bool:
    lower = text.lower()
    return any(words in lower for words in SURPRISES)


@dataclass(frozen=True)
class Rule:
    """One label of a story."""

    name: str
    statement: str
    """What it decides, in one line."""
    of: Callable[[str], bool]
    exact: bool
    """Decidable by the characters; else a marker that misses some and catches some wrongly."""
    surely_not: Callable[[str], bool]
    """Whether a story is a clean negative, for training a classifier; for an exact rule simply its opposite."""
    phrase: str
    """As in "a story with ... in it"."""


def _exact(name: str, statement: str, of: Callable[[str], bool], phrase: str) -> Rule:
    return Rule(name, statement, of, True, lambda text: not of(text), phrase)


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        _exact(
            "Dialogue", "a pair of double quotes, straight or curly, with a letter or digit between", _is_dialogue, "dialogue"
        ),
        _exact("Question", "a quotation with a question mark in it", _has_question, "a question in its dialogue"),
        _exact(
            "Speech",
            "a quotation that ends in . ! ? , a dash or an ellipsis: speech, not a name or a sign",
            _has_speech,
            "spoken words",
        ),
        Rule(
            "MoralValue",
            "'the moral', 'moral of the story', 'learned that' or 'learned ... lesson' in the last third; morals in other words are missed",
            _has_moral,
            False,
            lambda text: _ANY_MORAL.search(text) is None,
            "a moral",
        ),
        Rule(
            "BadEnding",
            "sad, cried, sorry, lost or never in the last two sentences and no happy word there, or 'bad ending' anywhere; weak",
            _ends_badly,
            False,
            lambda text: not _BAD.search(last_sentences(text)) and not _SAYS_BAD.search(text),
            "a bad ending",
        ),
        Rule(
            "Surprise",
            "contains a surprise word such as 'suddenly' or 'but then'; that is not a twist",
            _has_surprise,
            False,
            lambda text: not _has_surprise(text),
            "a surprise word",
        ),
    )
}
"""Every rule by its name."""
_OTHER_PHRASES = {"Twist": "a twist", "Foreshadowing": "foreshadowing", "Conflict": "a conflict"}
_SOURCES = f"plain text gives {', '.join(RULES)}; {', '.join(ONLY_INSTRUCT)} come only with the labels of TinyStoriesInstruct"


def labels(text: str) -> dict[str, bool]:
    """Every rule's answer on the text as it stands."""
    return {name: rule.of(text) for name, rule in RULES.items()}


def phrase(name: str) -> str:
    """A feature as one speaks of it: `a bad ending`; one that `check_feature` does not know raises its error."""
    check_feature(name)
    return RULES[name].phrase if name in RULES else _OTHER_PHRASES[name]


def check_feature(name: str, plain: bool = False) -> None:
    """Nothing, where there is such a feature.

    Args:
        name: a feature of the instruct set, or a rule.
        plain: whether it has to be decided from plain text, without the instruct set's labels.

    Raises:
        UserError: when there is none, or plain text does not give it.
    """
    if name not in INSTRUCT_FEATURES and name not in RULES:
        near = did_you_mean(name, {*INSTRUCT_FEATURES, *RULES})
        raise UserError(f"there is no feature {name!r}{near} ({_SOURCES})")
    if plain and name in ONLY_INSTRUCT:
        rest = ", ".join(x for x in RULES if x not in ONLY_INSTRUCT)
        raise UserError(
            f"{name} cannot be decided from plain text: it comes only with the labels of TinyStoriesInstruct; use that corpus, or {rest}"
        )
