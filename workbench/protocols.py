"""Tasks and training protocols: the plug-in contract, and the lookup of what is installed.

A package adds a task or a protocol by an entry point in the group `workbench.tasks` or `workbench.protocols`;
nothing in the workbench names one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from workbench.errors import UserError, did_you_mean
from workbench.examples import Capability, Correlation, Examples


@runtime_checkable
class Task(Protocol):
    """A procedural generator of prompts with exactly known answers."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        ...

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Names that `capability` accepts; a restriction of the labels may follow one, as in `count_a>4`."""
        ...

    def family(self, capability: str) -> str:
        """The family that a capability belongs to, for instance `count`."""
        ...

    def capability(self, name: str, correlation: Correlation | None = None) -> Capability:
        """A capability by name, on plain texts or on texts with an exact spurious correlation."""
        ...

    def describe(self, tokens: Sequence[int]) -> str:
        """Tokens as text that a person can read."""
        ...

    @property
    def resolved(self) -> Mapping[str, Any]:
        """Settings that make this very task again: what files held is in them, and defaults are left out.

        They enter the key of every run, so that a changed file makes a new run.
        """
        ...


@dataclass(frozen=True)
class Compiled:
    """A transformer whose weights were written down by a compiler rather than trained.

    No norms, ReLU MLPs, attention to all positions with logits q k / sqrt(head_dim). `weights` holds one array per parameter,
    `[out, in]`, tables `[id or position, width]`, by the names of `workbench.models.compiled`; a name that is left out is zero:

        model.token_embedding.weight, model.position_embedding.weight, head.weight,
        model.blocks.N.attention.{query,key,value,output}.{weight,bias}, model.blocks.N.mlp.{input,output}.{weight,bias}
    """

    token_names: tuple[str, ...]
    """The vocabulary in the order of ids; inputs and answers share it."""
    context: int
    """Longest sequence in tokens."""
    blocks: int
    heads: int
    head_dim: int
    width: int
    """Of the residual stream."""
    hidden: int
    """Neurons per block."""
    residual_labels: tuple[str, ...]
    """What each direction of the residual stream means, for instance `tokens:a`."""
    neuron_labels: tuple[tuple[str, ...], ...]
    """Per block, what each hidden neuron does; empty for one without a task."""
    answers: Mapping[str, str]
    """Directions of the residual stream that are answers, and the token that each one stands for."""
    logit_scale: float
    """Factor from an answer's direction to its logit."""
    weights: Mapping[str, np.ndarray]

    def parameters(self) -> int:
        """Number of parameters, zeros included."""
        inner = self.heads * self.head_dim
        per_block = (4 * self.width * inner + 3 * inner + self.width) + (2 * self.width + 1) * self.hidden + self.width
        return (2 * len(self.token_names) + self.context) * self.width + self.blocks * per_block


@runtime_checkable
class CompilingTask(Task, Protocol):
    """A task that can write down weights which have a capability; all its capabilities have weights of one shape."""

    def compiled(self, capability: str) -> Compiled:
        """Weights with exactly this capability; raises `UserError` on one that the task does not have."""
        ...


@dataclass(frozen=True)
class Openings:
    """Beginnings of real texts, and how these go on."""

    prompts: tuple[np.ndarray, ...]
    """Token ids, one array a text to be written; of a small corpus openings return."""
    written: tuple[str, ...]
    """Opening and continuation of the real texts, each once, cut to the length that a model is given."""
    begins: tuple[int, ...]
    """Per prompt, how many of its tokens stand before the text itself: what begins every text, and an instruction."""


@runtime_checkable
class Score(Protocol):
    """A share of texts by one judge, with its interval."""

    @property
    def judge(self) -> str:
        """Who judged, in a few words."""
        ...

    @property
    def n(self) -> int:
        """Texts that were judged."""
        ...

    @property
    def rate(self) -> float:
        """Share that shows it by this judge."""
        ...

    @property
    def low(self) -> float:
        """Lower end of the share's 95 % interval."""
        ...

    @property
    def high(self) -> float:
        """Upper end."""
        ...

    @property
    def corrected_rate(self) -> float:
        """The true share, given how often the judge errs."""
        ...

    @property
    def corrected_low(self) -> float:
        """Lower end of its 95 % interval."""
        ...

    @property
    def corrected_high(self) -> float:
        """Upper end."""
        ...

    @property
    def trust(self) -> str:
        """How good the judge is, in a clause; empty for a definition."""
        ...

    def unbiased(self, shows: np.ndarray) -> np.ndarray:
        """Numbers per text whose mean is the corrected share; `shows` itself for a definition."""
        ...


@runtime_checkable
class WritingTask(Task, Protocol):
    """A task of texts that a model can go on with freely, and that can be judged."""

    @property
    def end(self) -> int:
        """The token that ends a text."""
        ...

    @property
    def padding(self) -> int:
        """A token that stands in no text."""
        ...

    def begin(self, text: str) -> np.ndarray:
        """Token ids of a text that a person wrote and a model is to go on with, with the token that begins every text."""
        ...

    def without_instruction(self, text: str) -> str:
        """The text itself: what follows an instruction in front of it, or all of it where there is none."""
        ...

    def openings(self, capability: str, n: int, seed: int, tokens: int, more: int) -> Openings:
        """`tokens` of each of `n` test texts, none of which shows the capability yet; `more` tokens of the real ones follow."""
        ...

    @property
    def rules(self) -> Mapping[str, str]:
        """What each rule of `marks` decides, in a line."""
        ...

    def marks(self, written: Sequence[str]) -> Mapping[str, np.ndarray]:
        """What rules say of texts: name of a feature -> booleans `[n]`."""
        ...

    def shows(self, capability: str, written: Sequence[str]) -> np.ndarray:
        """1.0 where a text shows what the capability is about, else 0.0; `[n]`."""
        ...

    def judged_by(self, capability: str) -> str:
        """Who says so, and how far to trust it, in a clause."""
        ...

    def judged(self, capability: str, written: Sequence[str], seed: int) -> Sequence[Score]:
        """The share of texts that show it by every judge that there is, the one that decides first."""
        ...

    def kinds(self, capability: str) -> tuple[str, ...]:
        """Kinds of whole texts whose loss tells about a capability: with it, and without it.

        Where an instruction asks for it there is a third: the texts of the second kind, asked for it all the same.
        """
        ...

    def feature(self, capability: str) -> str:
        """The label of `whole` that a capability speaks of; raises `UserError` where there is none."""
        ...

    def hints(self, capability: str, pieces: Sequence[str]) -> np.ndarray:
        """Which pieces of texts show by themselves that their text has what the capability is about; booleans `[n]`."""
        ...

    def whole(self, kind: str | None, n: int, seed: int, split: str = "test") -> Examples:
        """`n` whole texts of a kind (None: any; all, if fewer), padded on the right; the loss mask is on the text's tokens.

        `labels` say of each text which features it has.
        """
        ...


@runtime_checkable
class TokenizedTask(Task, Protocol):
    """A task whose ids are those of a tokenizer."""

    def check_tokenizer(self, folder: Path, rows: int) -> None:
        """Refuse, by a `UserError`, a folder with a tokenizer of other ids than the task's, or embeddings of so many rows."""
        ...


def compiled_weights(task: Task, capability: str | None = None) -> Compiled:
    """Weights that have a capability of the task, or (None) any of it, for their shape.

    Raises:
        UserError: the task compiles no models, or has no such capability.
    """
    if not isinstance(task, CompilingTask):
        raise UserError(f"a {type(task).__name__} compiles no models; use a task that does, such as 'rasp', or train one.")
    return task.compiled(task.capabilities[0] if capability is None else capability)


@runtime_checkable
class TrainingProtocol(Protocol):
    """A seeded `step -> batch`; `batch(step)` does not depend on which batches were asked for before."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        ...

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities whose prompts can occur, so that a control that is asked what it must never see is refused."""
        ...

    def batch(self, step: int) -> Examples:
        """The training batch of one step."""
        ...


def unrestricted(capability: str) -> str:
    """The name of a capability without a restriction of its labels: `count_a` for `count_a>4`."""
    return capability.partition("<")[0].partition(">")[0]


TaskFactory = Callable[[Mapping[str, Any]], Task]
"""`settings -> task`; raises `UserError` on a setting that it does not know or cannot honour."""
ProtocolFactory = Callable[[Task, Mapping[str, Any], int, int], TrainingProtocol]
"""`(task, settings, batch_size, seed) -> protocol`; raises `UserError` on a bad setting."""


@cache
def _installed(group: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=group)}


def installed(kind: str) -> tuple[str, ...]:
    """Names of installed `"tasks"` or `"protocols"`; imports none of them."""
    return tuple(sorted(_installed(f"workbench.{kind}")))


def _load(kind: str, name: str) -> Any:
    points = _installed(f"workbench.{kind}")
    if name not in points:
        raise UserError(f"there is no {kind.rstrip('s')} {name!r}{did_you_mean(name, points)}")
    return points[name].load()


def load_task(settings: Mapping[str, Any]) -> Task:
    """The task of a study's `task:` section; `kind` names the plug-in, the rest are its settings."""
    rest = dict(settings)
    return cast(TaskFactory, _load("tasks", str(rest.pop("kind", "pcfg"))))(rest)


def load_protocol(name: str, task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """The training protocol `name` on `task`."""
    return cast(ProtocolFactory, _load("protocols", name))(task, settings, batch_size, seed)
