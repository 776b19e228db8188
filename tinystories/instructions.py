"""The lines in front of a story that say what it is to be: Features, Words, Summary and a sentence of it, in any order.

The format, as TinyStoriesInstruct has it: each line is `Kind: value`, lists are separated by a comma and a space, and `Story: `
(with its space) ends the prompt. A prompt that is written this way is read and written back to the very same text; other spacing
is read too and written back in this form.

The trap: in that set a Summary may follow its Story, so that at a careless cut it stands in front of the next story's lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tinystories.features import FROM_TEXT, MORAL, RULES, check_feature, plain_sentences
from workbench.errors import UserError, did_you_mean
from workbench.seeds import numpy_generator

LINES = ("features", "words", "summary", "sentence")
"""The kinds of lines."""
SENTENCE_WORDS = ("Random sentence", "Sentence")
"""The two names of the line with a sentence of the story; the first is that of the data, the second that of some code."""
STORY = "Story: "
SEPARATOR = "<|endoftext|>"
MOST_WORDS = 3
_KINDS = {"Features": "features", "Words": "words", "Summary": "summary", **dict.fromkeys(SENTENCE_WORDS, "sentence")}
_NAMES = {"features": "Features", "words": "Words", "summary": "Summary"}
_LISTS = ("features", "words")
_LINE = re.compile(r"[ \t]*(Features|Words|Summary|Random sentence|Sentence|Story):[ \t]*(.*)", re.DOTALL)
# What some reader may take for the end of a line, or of a record.
_BREAK = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]|" + re.escape(SEPARATOR))
_WORD = re.compile(r"(?<![\w'’-])[a-z]{4,}(?![\w'’-])")
_STOP = frozenset(
    """about after again agreed along also always another anymore answer answered around asked asking away back because been
    before began being both called came come could cried does done down each else even ever every everyone everything
    explain explained explaining felt from gave going gone have having here hers himself herself into just kept knew
    know learn learned learning lesson lessons like liked long lots made make many maybe more moral most much must
    named never next once only onto other others over really replied reply said saying says seen shall shouted should
    some something soon still such suddenly take talk talked talking tell telling than that their them themselves then
    there these they thing things this those though thought through told took under until upon used very want wanted
    warned went were what when where which while whisper whispered will with without would yell yelled your""".split()  # noqa: SIM905
)
"""No content, or words that would tell what Features is to tell: who speaks (said, asked), what was learned."""


@dataclass(frozen=True)
class Instruction:
    """What a story is asked to be. Empty and None: no such line."""

    features: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    summary: str | None = None
    sentence: str | None = None

    def __post_init__(self) -> None:
        for kind in _LISTS:
            for entry in getattr(self, kind):
                if not entry or entry != entry.strip() or "," in entry or _BREAK.search(entry):
                    raise UserError(
                        f"an instruction's {kind} hold {entry!r}; give words without commas, line breaks, separators or outer spaces"
                    )
        for kind in ("summary", "sentence"):
            text = getattr(self, kind)
            if text is not None and (not text or text != text.strip() or _BREAK.search(text)):
                raise UserError(
                    f"an instruction's {kind} is {text!r}; give one line of text without separator or outer spaces, or none"
                )

    @property
    def lines(self) -> tuple[str, ...]:
        """The kinds of lines that it has, in the order of `LINES`."""
        return tuple(kind for kind in LINES if getattr(self, kind))


@dataclass(frozen=True)
class Parsed:
    """A prompt taken apart; `render` puts it together."""

    instruction: Instruction
    order: tuple[str, ...]
    """The kinds of its own lines as they stood."""
    sentence_word: str = SENTENCE_WORDS[0]
    orphan_summary: str | None = None
    """A Summary in front of all lines though another follows: that of the story before."""
    story: str | None = None
    """What stands behind `Story: `; None where nothing does."""

    def __post_init__(self) -> None:
        if sorted(self.order) != sorted(self.instruction.lines):
            raise UserError(
                f"the order {self.order} is not one of the instruction's lines {self.instruction.lines}; name each once"
            )
        if self.sentence_word not in SENTENCE_WORDS:
            raise UserError(f"the sentence's line is called {self.sentence_word!r}; known: {', '.join(SENTENCE_WORDS)}")
        if self.orphan_summary is not None and "summary" not in self.order:
            raise UserError("an orphan summary can be told only beside a summary of the instruction's own; leave it out")


@dataclass(frozen=True)
class Record:
    """A story and its instruction."""

    instruction: Instruction
    story: str


def render(parsed: Parsed) -> str:
    """The prompt's text: its lines in their order, then `Story: ` and the story where there is one."""
    text = [] if parsed.orphan_summary is None else [f"Summary: {parsed.orphan_summary}\n"]
    for kind in parsed.order:
        value = getattr(parsed.instruction, kind)
        name = parsed.sentence_word if kind == "sentence" else _NAMES[kind]
        text.append(f"{name}: {', '.join(value) if kind in _LISTS else value}\n")
    return "".join(text) + STORY + (parsed.story or "")


def parse(prompt: str) -> Parsed:
    """A prompt taken apart; all behind its first `Story:` is the story.

    Empty lines and lines without a value are passed over.

    Raises:
        UserError: for a line of no known kind, a kind that stands twice, or a prompt without `Story:`.
    """
    lines = prompt.split("\n")
    for at, line in enumerate(lines):
        found = _LINE.fullmatch(line)
        if found and found[1] == "Story":
            story = "\n".join((found[2], *lines[at + 1 :])).strip()
            return replace(_parse_lines(lines[:at]), story=story or None)
    _parse_lines(lines)  # whose complaint goes first
    raise UserError(f"the instruction {_shown(prompt)} has no line 'Story:'; end it with one")


def _parse_lines(lines: Iterable[str]) -> Parsed:
    """The lines in front of a story."""
    values: dict[str, str] = {}
    sentence_word, orphan = SENTENCE_WORDS[0], None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if not found:
            start = line.partition(":")[0].strip()
            raise UserError(f"line {number} of the instruction is {_shown(line)}{did_you_mean(start, [*_KINDS, 'Story'])}")
        kind, value = _KINDS[found[1]], found[2].strip()
        if not value:
            continue
        if kind in values:
            if kind != "summary" or orphan is not None or next(iter(values)) != "summary":
                raise UserError(
                    f"line {number} of the instruction is {_shown(line)}: there is a {found[1]} above already; keep one"
                )
            orphan = values.pop("summary")
        values[kind] = value
        sentence_word = found[1] if kind == "sentence" else sentence_word
    lists = {k: tuple(x for x in (part.strip() for part in values.get(k, "").split(",")) if x) for k in _LISTS}
    instruction = Instruction(lists["features"], lists["words"], values.get("summary"), values.get("sentence"))
    return Parsed(instruction, tuple(k for k in values if k in instruction.lines), sentence_word, orphan)


def _shown(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def parse_records(lines: Iterable[str], skipped: Counter[str] | None = None) -> Iterator[Record]:
    """The records of a text in the instruct format, one after another, in memory that does not grow with the text.

    A record is instruction lines, `Story:`, the story's lines, then `<|endoftext|>` or the end of the text. A Summary below its
    story is the record's own, unless it has one. One that stands in front of the next record's lines, which can be told where those
    hold a Summary of their own, goes to the record before it, unless that has one; a record is therefore given out only
    when the next is known. A story is the text between, without outer white space.

    Pieces that are no records are passed over and counted in `skipped`: without a story, with an empty one, with a line
    that is no instruction, or with instruction lines inside the story (a separator was lost).

    Raises:
        UserError: at the end, when the text has pieces and none is a record.
    """
    skipped = Counter[str]() if skipped is None else skipped
    waiting: Record | None = None
    any_record = False
    for piece in _pieces(lines):
        record, orphan = _record(piece, skipped)
        if waiting is not None:
            if orphan is not None and waiting.instruction.summary is None:
                waiting = replace(waiting, instruction=replace(waiting.instruction, summary=orphan))
            yield waiting
        waiting = record
        any_record = any_record or record is not None
    if waiting is not None:
        yield waiting
    if not any_record and skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise UserError(
            f"the text holds no instruction with its story ({reasons}); is it in the format of TinyStoriesInstruct?"
        )


def _pieces(lines: Iterable[str]) -> Iterator[list[str]]:
    """The lines between separators, which may stand inside a line; pieces of white space are no pieces."""
    piece: list[str] = []
    for line in lines:
        first, *others = line.rstrip("\r\n").split(SEPARATOR)
        piece.append(first)
        for other in others:
            if any(part.strip() for part in piece):
                yield piece
            piece = [other]
    if any(part.strip() for part in piece):
        yield piece


def _record(piece: list[str], skipped: Counter[str]) -> tuple[Record | None, str | None]:
    """A piece's record, and the summary of the one before it."""
    found = [_LINE.fullmatch(line) for line in piece]
    at = next((i for i, m in enumerate(found) if m and m[1] == "Story"), None)
    if at is None:
        skipped["without a story"] += 1
        return None, None
    try:
        head = _parse_lines(piece[:at])
    except UserError:
        skipped["with a broken instruction"] += 1
        return None, None
    instruction, orphan = head.instruction, head.orphan_summary
    body = [piece[at].partition(":")[2], *piece[at + 1 :]]
    while not body[-1].strip() and len(body) > 1:
        body.pop()
    below = found[at + len(body) - 1] if len(body) > 1 else None
    if below and below[1] == "Summary":
        body.pop()
        if instruction.summary is None and below[2].strip():
            instruction = replace(instruction, summary=below[2].strip())
    if any(found[at + 1 : at + len(body)]):
        skipped["with instruction lines inside the story"] += 1
        return None, orphan
    story = "\n".join(body).strip()
    if not story:
        skipped["with an empty story"] += 1
        return None, orphan
    return Record(instruction, story), orphan


def derive(text: str, seed: int, epoch: int = 0, features: tuple[str, ...] = FROM_TEXT) -> Instruction:
    """An instruction that the story fulfils, from its text alone; a function of (text, seed, epoch, features) and nothing else.

    Features are those of `features` that the story has, in that order; words are one to three of its content words (lower case,
    four letters and more, each once); the sentence is one that stands outside quotations and names no moral, so that no other line
    tells what Features tells. A story without such words or sentences has no such line. There is no summary.

    Raises:
        UserError: when a feature cannot be decided from plain text.
    """
    for name in features:
        if name not in FROM_TEXT:
            check_feature(name, plain=True)
    rng = numpy_generator(seed, "derived instruction", epoch, text)
    known = [word for word in dict.fromkeys(_WORD.findall(text)) if word not in _STOP]
    count = min(int(rng.integers(1, MOST_WORDS + 1)), len(known))
    words = tuple(known[i] for i in rng.permutation(len(known))[:count])
    sentences = [sentence for sentence in plain_sentences(text) if not (MORAL.search(sentence) or _BREAK.search(sentence))]
    sentence = sentences[int(rng.integers(len(sentences)))] if sentences else None
    return Instruction(tuple(name for name in features if RULES[name].of(text)), words, None, sentence)


def prompt(
    instruction: Instruction,
    seed: int,
    epoch: int,
    key: str | int,
    subset: tuple[str, ...] = LINES,
    all_present: bool = True,
    sentence_word: str = SENTENCE_WORDS[0],
) -> str:
    """The instruction's lines in random order, ending in `Story: `; drawn anew per (seed, epoch, key).

    Args:
        instruction: what to say.
        seed: of the whole study.
        epoch: a story's lines stand in another order in each.
        key: what names the story, such as a hash of its text; the same key gives the same draw.
        subset: kinds of lines (`LINES`) that may stand; each that the instruction has stands where `all_present`, else a
            random choice of at least one does, all such choices being equally likely.
        all_present: see `subset`.
        sentence_word: how the sentence's line is called.

    Raises:
        UserError: when `subset` names no kind of line.
    """
    for kind in subset:
        if kind not in LINES:
            raise UserError(f"an instruction has no lines {kind!r}{did_you_mean(kind, LINES)}")
    rng = numpy_generator(seed, "instruction lines", epoch, key)
    kinds = [kind for kind in instruction.lines if kind in subset]
    if not all_present and kinds:
        choice = int(rng.integers(1, 1 << len(kinds)))
        kinds = [kind for i, kind in enumerate(kinds) if choice >> i & 1]
    order = tuple(kinds[i] for i in rng.permutation(len(kinds)))
    chosen = Instruction(**{kind: getattr(instruction, kind) for kind in kinds})
    return render(Parsed(chosen, order, sentence_word))
