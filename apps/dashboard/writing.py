"""What the models of a pair write when they go on from a prompt; the same inputs are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from apps.dashboard import reading
from apps.dashboard.token_html import Piece, pieces
from workbench.errors import UserError
from workbench.protocols import WritingTask, load_task
from workbench.studies.handle import Study
from workbench.studies.stage import PairPlan
from workbench.subjects import Pair

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

OPENINGS = 50
"""Test stories that a person is offered openings of."""
OPENING = 24
"""Tokens of one."""


@dataclass(frozen=True)
class Request:
    """What is to be written."""

    text: str
    new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Continuation:
    """What one model wrote, token by token."""

    pieces: tuple[Piece, ...]
    story: str
    """Prompt and continuation without an instruction."""
    written: int
    """Tokens that the model wrote, the one that ends the text not counted."""
    ended: bool
    nats: float
    """Mean surprisal of what it wrote, in nats per token, the end included."""
    marks: Mapping[str, bool]
    """What the rules say of the story."""


@dataclass(frozen=True)
class Share:
    """How many continuations of a prompt show the ability, by one judge."""

    model: str
    judge: str
    n: int
    rate: float
    low: float
    high: float
    corrected: tuple[float, float, float] | None
    """The true share and its interval, given how often the judge errs; None for a definition."""
    trust: str


def task_of(pair: Pair) -> WritingTask:
    """The pair's task.

    Raises:
        UserError: it has no texts that one could go on with.
    """
    if not isinstance(pair.task, WritingTask):
        raise UserError(f"a {type(pair.task).__name__} has no texts to go on with; take a study with a task of kind 'stories'.")
    return pair.task


def models(pair: Pair) -> dict[str, PreTrainedModel]:
    """Base, tuned, and the revived model and the control where there are any."""
    never = pair.never_had_it
    return pair.states if never is None else {**pair.states, "never_had_it": never}


def _prompt(task: WritingTask, request: Request) -> Tensor:
    import torch

    prompt = torch.from_numpy(task.begin(request.text))
    if len(prompt) + request.new_tokens > task.context:
        room = task.context - len(prompt)
        fix = f"write at most {room}, or shorten the prompt" if room > 0 else "shorten the prompt"
        raise UserError(
            f"the prompt has {len(prompt)} tokens, and {request.new_tokens} more go beyond the context of {task.context}; {fix}."
        )
    return prompt


def continuations(pair: Pair, request: Request) -> dict[str, Continuation]:
    """One text of each model, all with the same random stream.

    Raises:
        UserError: an instruction without an end, a prompt that leaves no room, a temperature below 0.
    """
    import torch

    from workbench.models.generation import generate, surprisal, token_kl

    task = task_of(pair)
    prompt, out = _prompt(task, request), dict[str, Continuation]()
    for name, model in models(pair).items():
        (found,) = generate(
            model,
            [prompt],
            new_tokens=request.new_tokens,
            eos_id=task.end,
            pad_id=task.padding,
            temperature=request.temperature,
            seed=request.seed,
        )
        ended = len(found) < request.new_tokens
        tokens = torch.cat([prompt, found, torch.tensor([task.end] * ended, dtype=torch.long)])[None]
        nats, kl = surprisal(model, tokens)[0], token_kl(model, pair.base, tokens)[0]
        ids = tokens[0].tolist()
        story = task.without_instruction(task.describe(ids))
        out[name] = Continuation(
            pieces=tuple(pieces(ids, task.describe, nats.tolist(), kl.tolist(), len(prompt))),
            story=story,
            written=len(found),
            ended=ended,
            nats=float(nats[len(prompt) - 1 :].mean()),
            marks={rule: bool(said[0]) for rule, said in task.marks([story]).items()},
        )
    return out


def shares(pair: Pair, request: Request, n: int) -> list[Share]:
    """How many of `n` continuations by each model show the pair's ability, prompt included and instruction left out.

    Raises:
        UserError: as `continuations`; a temperature at which all are the same; an ability that nothing tells the texts of.
    """
    from workbench.models.generation import generate

    task = task_of(pair)
    prompt = _prompt(task, request)
    if request.temperature == 0:
        raise UserError(
            f"at temperature 0 all {n} continuations are the same; raise it to see how often a model shows something."
        )
    task.judged_by(pair.capability)  # before minutes of writing
    out: list[Share] = []
    for name, model in models(pair).items():
        found = generate(
            model,
            [prompt] * n,
            new_tokens=request.new_tokens,
            eos_id=task.end,
            pad_id=task.padding,
            temperature=request.temperature,
            seed=request.seed,
        )
        texts = [task.without_instruction(task.describe([*prompt.tolist(), *more.tolist()])) for more in found]
        for score in task.judged(pair.capability, texts, request.seed):
            true = (score.corrected_rate, score.corrected_low, score.corrected_high) if score.trust else None
            out.append(Share(name, score.judge, score.n, score.rate, score.low, score.high, true, score.trust))
    return out


def openings(pair: Pair) -> tuple[str, ...]:
    """Beginnings of test stories as texts, cut behind a whole word, with their instruction where the ability is behind one."""
    task = task_of(pair)
    tokens = max(1, min(OPENING, task.context // 4))
    found = task.openings(pair.capability, OPENINGS, pair.seed, tokens, task.context // 4)
    texts: list[str] = []
    for ids, begins, real in zip(found.prompts, found.begins, found.written, strict=False):  # once each; prompts may return
        text = task.describe(ids.tolist())
        rest = real.removeprefix(task.describe(ids[begins:].tolist()))
        cut = text.rsplit(" ", 1)[0] if text[-1:].isalnum() and rest[:1].isalnum() else text
        texts.append(cut.rstrip(" "))
    return tuple(texts)


@dataclass(frozen=True)
class Subject:
    """A pair by what identifies its models, so that what was computed stays valid while other runs come and go."""

    root: str
    study: str
    pair: str
    seed: int
    keys: tuple[str, ...]
    """Of its runs that are done."""


def subject(study: Study, pair: str, seed: int) -> tuple[Subject, PairPlan]:
    """A pair of an opened study and its stages."""
    planned = next(p for p in study.plan.pairs if p.name == pair and p.seed == seed)
    wanted = [stage.key for stage in (*planned.models, *planned.arms.values())]
    runs = study.store.find_all(wanted)
    done = tuple(key for key in wanted if key in runs and runs[key].done)
    return Subject(str(study.store.root), study.name, pair, seed, done), planned


@st.cache_resource(max_entries=3, show_spinner="Loading the models")
def pair_of(of: Subject) -> Pair:
    """The pair, its models loaded.

    Raises:
        UserError: they are not done yet.
    """
    study = reading.study(of.study)
    if isinstance(study, str):
        raise UserError(study)
    pair = study.pair(of.pair, of.seed, "auto")
    models(pair)
    return pair


@st.cache_data(max_entries=64, show_spinner="The models write")
def written(of: Subject, request: Request) -> dict[str, Continuation]:
    """`continuations`, once for the same inputs."""
    return continuations(pair_of(of), request)


@st.cache_data(max_entries=64, show_spinner="The models write many texts")
def scored(of: Subject, request: Request, n: int) -> list[Share]:
    """`shares`, once for the same inputs."""
    return shares(pair_of(of), request, n)


@st.cache_data(max_entries=16, show_spinner="Looking for openings of test stories")
def offered(of: Subject) -> tuple[str, ...]:
    """`openings`, once for the same pair."""
    return openings(pair_of(of))


@st.cache_data(max_entries=256, show_spinner="Looking for stories")
def writes(task: Mapping[str, Any]) -> bool:
    """Whether a task (its resolved settings) has texts to go on with."""
    return isinstance(load_task(task), WritingTask)
