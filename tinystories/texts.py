"""Whole test stories to be predicted, and beginnings of them to be gone on with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinystories.edits import randomise, without
from tinystories.features import INSTRUCT_FEATURES, RULES
from tinystories.instructions import Instruction
from tinystories.packing import single
from tinystories.prompts import ASKED, QUOTES, WITHOUT, feature_of, opposite, plain
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.protocols import Openings
from workbench.seeds import numpy_generator

if TYPE_CHECKING:
    from tinystories.task import StoriesTask

ADVERSARIAL = "adversarial_"
"""`adversarial_dialogue`: stories without it behind an instruction that asks for it."""


def kinds(capability: str) -> tuple[str, ...]:
    """Kinds of whole stories that tell what a capability's loss depends on [Jain+23 §F.2].

    With it, without it, and, where an instruction asks, without it though asked for.
    """
    if capability == "ending":
        return (capability,)
    both = (capability, opposite(capability))
    return (*both, ADVERSARIAL + plain(capability)) if capability.startswith(ASKED) else both


def whole(task: StoriesTask, kind: str | None, n: int, seed: int, split: str) -> Examples:
    """`n` whole stories of a kind (None: any), or all that there are, cut at the context; loss on every token of the story.

    With and without an instruction, and whatever it asks, they are the same stories in the same order; behind an instruction
    the loss is on as many tokens of a story as fit whether it asks for the feature or not, so that both can be held together.
    The labels say which features each story has.

    Raises:
        UserError: there is none.
    """
    kind = kind or "ending"  # every story has one
    adversarial, asked = kind.startswith(ADVERSARIAL), kind.startswith(ASKED)
    wanted = kind.removeprefix(ADVERSARIAL)
    of = ASKED + opposite(wanted) if adversarial else kind
    order = numpy_generator(seed, "stories", "whole", plain(of)).permutation(task.having(split, of))[:n]
    prefixes, behind = None, None
    if adversarial or asked:
        told, name = task.told(split, seed), task.features[feature_of(of)]

        def turn(instruction: Instruction, rng: np.random.Generator) -> Instruction:
            """Asks for the feature of a story that lacks it, and not for that of one that has it."""
            return randomise(instruction, name, rng) if plain(of).startswith(WITHOUT) else without(instruction, name)

        own, turned = ([told.tokens(story, 0, edit) for story in order.tolist()] for edit in (None, turn))
        prefixes = turned if adversarial else own
        behind = np.array([max(len(a), len(b)) for a, b in zip(own, turned, strict=True)])
    code = task.tokenizer
    rows = single(task.store(split).stories(order), task.context, code.pad_id, code.bos_id, code.eos_id, prefixes)
    if prefixes is not None and behind is not None:
        # What the longer of both instructions pushes out is no target behind the shorter one.
        ends = task.context - behind + np.array([len(prefix) for prefix in prefixes])
        rows.loss_mask[torch.arange(rows.tokens.shape[1]) >= torch.from_numpy(ends)[:, None]] = False
    stories = task.corpus.split(split)
    marks = task.marks([stories[story]["text"] for story in order.tolist()])
    labels = {name: torch.from_numpy(found.astype(np.int64)) for name, found in marks.items()}
    if task.corpus.labelled:  # an exact rule stands; of markers the corpus' own labels are the better ones
        told_by = [set(stories[story]["features"]) for story in order.tolist()]
        exact = {name for name, rule in RULES.items() if rule.exact}
        labels |= {f: torch.tensor([int(f in of) for of in told_by]) for f in INSTRUCT_FEATURES if f not in exact}
    return to_predict(rows.tokens, task.vocab_size, rows.loss_mask, rows.attention_mask, labels)


def openings(task: StoriesTask, capability: str, n: int, seed: int, tokens: int, more: int) -> Openings:
    """Beginnings of test stories, BOS first, none of which shows the feature yet; once more where they run out.

    Without an instruction of stories of every kind; behind one, of those that have the feature and ask for it.

    Raises:
        UserError: a capability that nothing tells the texts of, or no test story that is so long.
    """
    asked, feature = capability.startswith(ASKED), feature_of(capability)
    stories, code = task.corpus.split("test"), task.tokenizer
    told = task.told("test", seed) if asked else None
    chosen = task.having("test", capability) if asked else np.arange(len(stories))
    prompts: list[Int[np.ndarray, " t"]] = []
    written: list[str] = []
    begins: list[int] = []
    for story in chosen[numpy_generator(seed, "stories", "openings").permutation(len(chosen))].tolist():
        if len(prompts) == n:
            break
        ids = code.encode(stories[story]["text"])
        begun = code.decode(ids[:tokens])
        # Whether a text that has just begun shows it only the rule can say, and only of speech.
        if len(ids) > tokens and not (feature == "dialogue" and (task.shows(feature, [begun])[0] or QUOTES & set(begun))):
            before = [code.bos_id] if told is None else [code.bos_id, *told.tokens(story).tolist()]
            if len(before) + tokens + more <= task.context:
                prompts.append(np.array([*before, *ids[:tokens]], dtype=np.int64))
                written.append(code.decode(ids[: tokens + more]))
                begins.append(len(before))
    if not prompts:
        raise UserError(
            f"no test story of corpus {task.corpus.name!r} has an opening of {tokens} tokens that leaves room for {more} more in "
            f"{task.context}; take shorter ones, or a larger corpus."
        )
    turns = [i % len(prompts) for i in range(n)]
    return Openings(tuple(prompts[i] for i in turns), tuple(written), tuple(begins[i] for i in turns))


def to_predict(
    tokens: Int[Tensor, "b t"],
    vocab_size: int,
    loss: Bool[Tensor, "b t"] | None = None,
    attention: Bool[Tensor, "b t"] | None = None,
    labels: dict[str, Int[Tensor, " b"]] | None = None,
) -> Examples:
    """Stories to be predicted at every token after the first (or those of `loss`)."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if loss is None else loss.clone()
    mask[:, 0] = False  # nothing predicts the first token
    return Examples(
        tokens=tokens,
        loss_mask=mask,
        answer_position=torch.full((len(tokens),), tokens.shape[1] - 2),
        answer=tokens[:, -1:].clone(),
        candidates=torch.arange(vocab_size),
        attention_mask=attention,
        labels=labels or {},
    )
