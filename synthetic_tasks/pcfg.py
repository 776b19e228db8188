"""The task of [Jain+23 §B.2]: families of questions about texts of a probabilistic context-free grammar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from pydantic import Field
from torch import Tensor

from synthetic_tasks.chance import best_constant, best_given
from synthetic_tasks.correlation import count_ranges, draw_correlated, index_ranges, select_natural
from synthetic_tasks.counterfactuals import one_substitution, other_counts
from synthetic_tasks.families import FAMILIES, IDENTIFIERS, Family
from synthetic_tasks.grammar import Grammar
from synthetic_tasks.labels import ABSENT
from synthetic_tasks.parse import parse_texts, symbol_names
from synthetic_tasks.prompts import Layout, Vocabulary
from synthetic_tasks.restrictions import ALL, Drawn, Labels, check, draw_restricted, parse
from workbench.errors import UserError, did_you_mean
from workbench.examples import Correlation, Examples
from workbench.seeds import numpy_generator
from workbench.settings import Settings, read_settings

Texts = UInt8[np.ndarray, "n length"]
Kind = Literal["natural", "balanced", "pretraining"]
"""`natural` texts are plain grammar samples; `balanced` ones have independent, evenly spread labels of the family of the
prompt (count and index; the others stay natural); `pretraining` is an even mixture of the two."""

REFERENCE_TEXTS = 4096
"""Texts of the same distribution that `Examples.chance` is computed on."""


class PcfgSettings(Settings):
    """Settings of the task `pcfg`."""

    grammar: str = "jain23"
    """A bundled grammar, the path of a grammar file, or a grammar itself (several lines)."""
    text_length: int = Field(default=32, ge=2, le=4096)
    window: int = Field(default=12, ge=1)
    """Number of last positions in which is counted."""
    occurrence: int = Field(default=3, ge=1)
    """Which occurrence from the end the index families ask for."""
    token_distance: int | None = Field(default=None, ge=0)
    """Distance from the end of the token asked for; the window when not given, at most the first token."""
    families: tuple[str, ...] = tuple(FAMILIES)
    identifiers: Literal[1, 3] = 1
    """3: counting the first terminal can also be asked for by the family tokens J1 and J2 [Jain+23 §E.2]."""


@dataclass(frozen=True, eq=False)
class PcfgTask:
    """Prompts about grammar texts with exact answers; a `workbench.protocols.Task`."""

    grammar: Grammar
    settings: PcfgSettings
    chances: dict[Any, dict[str, float]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> PcfgTask:
        """The task of a study's `task:` section.

        Raises:
            UserError: on an unknown setting, a value out of range, an unknown family, or a bad grammar.
        """
        read = read_settings(PcfgSettings, settings, "task pcfg")
        for name, largest in (("window", read.text_length), ("occurrence", read.text_length)):
            if getattr(read, name) > largest:
                raise UserError(
                    f"task pcfg setting {name!r} is {getattr(read, name)}; make it at most the text length {largest}."
                )
        if (read.token_distance or 0) >= read.text_length:
            raise UserError(
                f"task pcfg setting 'token_distance' is {read.token_distance}; "
                f"make it below the text length {read.text_length}."
            )
        for family in read.families:
            if family not in FAMILIES:
                raise UserError(f"there is no task family {family!r}{did_you_mean(family, FAMILIES)}")
        if len(set(read.families)) < max(1, len(read.families)):
            raise UserError(f"task pcfg setting 'families' is {list(read.families)}; name each family once, and at least one.")
        if read.identifiers > 1 and "count" not in read.families:
            raise UserError(
                f"task pcfg setting 'identifiers' is {read.identifiers}, but its families {list(read.families)} do not count; "
                "add 'count' or leave it at 1."
            )
        return cls(Grammar.load(read.grammar), read)

    @property
    def resolved(self) -> dict[str, Any]:
        """Settings that make this task again; a grammar of the user's own is in them as text."""
        given = self.settings.model_dump(exclude_defaults=True, mode="json")
        return {"kind": "pcfg", **given, **({"grammar": self.grammar.text} if self.grammar.text else {})}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Token names and ids."""
        return Vocabulary(self.grammar.terminals, self.settings.text_length)

    @cached_property
    def layout(self) -> Layout:
        """Where things stand in a sequence."""
        return Layout(self.vocabulary)

    @cached_property
    def families(self) -> Mapping[str, Family]:
        """The families of the task by name."""
        s = self.settings
        distance = min(s.window, s.text_length - 1) if s.token_distance is None else s.token_distance
        names = (*s.families, *(IDENTIFIERS if s.identifiers > 1 else ()))
        return {name: Family(name, self.vocabulary, s.window, s.occurrence, distance) for name in names}

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.vocabulary)

    @property
    def context(self) -> int:
        """Tokens of every sequence: the text and nine more."""
        return self.layout.length

    @cached_property
    def capabilities(self) -> tuple[str, ...]:
        """Names such as `count_a`, `pair_index_bb` and `token`."""
        return tuple(name for family in self.families.values() for name in family.capabilities)

    def locate(self, capability: str) -> tuple[Family, int]:
        """The family of a capability and the index of its operand, whatever labels its name may be restricted to.

        Raises:
            UserError: on a capability that the task does not have.
        """
        capability, _ = parse(capability)
        for family in self.families.values():
            if capability in family.capabilities:
                return family, family.capabilities.index(capability)
        raise UserError(f"the task has no capability {capability!r}{did_you_mean(capability, self.capabilities)}")

    def family(self, capability: str) -> str:
        """The family whose question a capability asks, for instance `count`, also under another identifier."""
        return self.locate(capability)[0].kind

    def aliases(self, capability: str) -> tuple[str, ...]:
        """Capabilities that ask the same under another identifier: `count_j1_a` and `count_j2_a` for `count_a`."""
        family, operand = self.locate(capability)[:2]
        same = (other for other in self.families.values() if other.kind == family.kind and other.name != family.name)
        return tuple(name for other in same for name in other.capabilities if self.locate(name)[1] == operand)

    def describe(self, tokens: Sequence[int]) -> str:
        """Tokens as text, for instance `SOS C a 12 SOT abcacb EOT ART 3 EOS`."""
        return self.vocabulary.describe(tokens)

    def capability(self, name: str, correlation: Correlation | None = None, texts: str = "natural") -> PcfgCapability:
        """A source of examples of one capability; `count_a>4` and `count_a<=4` are `count_a` on texts of such labels.

        With a correlation every text is edited: correlated with probability `share`, otherwise explicitly not.

        Raises:
            UserError: on an unknown capability, a correlation that no text can have, or labels that hardly any text has.
        """
        self.locate(name)
        if texts not in ("natural", "balanced", "pretraining"):
            raise UserError(f"there are no {texts!r} texts{did_you_mean(texts, ('natural', 'balanced', 'pretraining'))}")
        if correlation is not None:
            if texts != "natural":
                raise UserError(
                    f"texts {texts!r} and a correlation exclude each other, as correlated texts are edited; drop one."
                )
            self.check_correlation(correlation)
        plain, labels = parse(name)
        capability = PcfgCapability(self, plain, correlation, texts, labels)
        if labels:
            self.check_labels(plain, labels, lambda n: replace(capability, labels=ALL).draw(n, 0, "check"))
        return capability

    def ask(
        self, capability: str, texts: Texts, chance: Mapping[str, float], flags: Mapping[str, torch.Tensor] | None = None
    ) -> Examples:
        """What a capability asks of given texts; the labels hold those of all families and `flags`."""
        family, operand = self.locate(capability)
        n, layout = len(texts), self.layout
        found = {name: other.label(texts, i) for other in self.families.values() for i, name in enumerate(other.capabilities)}
        answer = family.answer(found[family.capabilities[operand]])
        return Examples(
            tokens=layout.sequences(family.token_id, int(family.operand_ids[operand]), family.number_id, texts, answer),
            loss_mask=layout.mask(n, layout.answer, layout.answer + 1),
            answer_position=torch.full((n,), layout.request),
            answer=torch.from_numpy(answer)[:, None],
            candidates=torch.from_numpy(family.answer_ids),
            labels={**{name: torch.from_numpy(values) for name, values in found.items()}, **(flags or {})},
            roles=layout.roles(n, self.settings.window),
            chance=chance,
        )

    def counterfactual(self, capability: str, examples: Examples, seed: int) -> Examples:
        """The same prompts about texts that are edited, as little as possible, to another answer; row by row.

        Counts change inside the window alone. Labels are those of the edited texts; whether an edited text is correlated is
        not among them. See `synthetic_tasks.counterfactuals`.

        Raises:
            UserError: no text can have another answer.
        """
        family, operand = self.locate(capability)
        rng = numpy_generator(seed, "pcfg", "counterfactual", family.capabilities[operand])
        texts = self.layout.texts(examples.tokens)
        letters = len(self.grammar.terminals)
        if family.kind == "count":
            edited = other_counts(texts, self.settings.window, operand, letters, rng)
        else:
            # As for counts, the last of the other operands gives way.
            others = [i for i in range(len(family.capabilities)) if i != operand][:-1]
            held = [lambda t, i=i: family.label(t, i) for i in others]
            edited = one_substitution(texts, letters, lambda t: family.label(t, operand), rng, held)
        return self.ask(capability, edited, examples.chance)

    def token_labels(self, examples: Examples) -> dict[str, Int[Tensor, "n t"]]:
        """The parse symbol and phrase of every letter, -1 where there is none: see `synthetic_tasks.parse`."""
        found: dict[str, Tensor] = {}
        for name, codes in parse_texts(self.grammar, self.layout.texts(examples.tokens)).items():
            found[name] = torch.full(examples.tokens.shape, ABSENT)
            found[name][:, self.layout.TEXT : self.layout.TEXT + codes.shape[1]] = torch.from_numpy(codes)
        return found

    def label_name(self, label: str, code: int) -> str:
        """What a code of `token_labels` means, in letters."""
        return "none" if code == ABSENT else symbol_names(self.grammar)[code]

    def natural_texts(self, n: int, rng: np.random.Generator) -> Texts:
        """Plain samples of the grammar."""
        return self.grammar.sample_texts(n, self.settings.text_length, rng)

    def mixed_texts(self, n: int, family: Family, balanced_fraction: float, rng: np.random.Generator) -> Texts:
        """Natural texts, each balanced with the given probability for the first two terminals of `family`."""
        texts = self.natural_texts(n, rng)
        rows = np.flatnonzero(rng.random(n) < balanced_fraction)
        if family.recipe is not None and len(rows):
            texts[rows] = family.recipe.balance(texts[rows], (1, 0), rng)
        return texts

    def check_correlation(self, correlation: Correlation) -> None:
        """Raise a `UserError` when the correlation's labels do not go together or no text can have the relation."""
        (family, _), (other, _) = self.locate(correlation.target), self.locate(correlation.partner)
        if family is not other:
            raise UserError(
                f"{correlation.target!r} and {correlation.partner!r} belong to different families "
                f"({family.name}, {other.name}); correlate two capabilities of one family."
            )
        s = self.settings
        if family.recipe is None:
            self.correlated_texts(2, correlation, numpy_generator(0, "pcfg", "check"), np.array([True, False]))
        elif family.name == "count":
            count_ranges(s.window, correlation.offset)
        else:
            index_ranges(s.text_length, s.occurrence, correlation.offset)

    def check_labels(self, name: str, labels: Labels, draw: Callable[[int], Drawn]) -> None:
        """Raise a `UserError` when a capability's labels cannot be restricted so on the texts that `draw` gives."""
        family, operand = self.locate(name)
        if family.name == "token":
            raise UserError(
                f"the labels of 'token' have no order, so {name}{labels} says nothing; restrict a count or an index."
            )
        values = family.answer_ids - self.vocabulary.zero
        last = int(values[values < self.vocabulary.text_length + 1].max())
        check(name, labels, (int(values.min()), last), draw, lambda texts: family.label(texts, operand))

    def correlated_texts(
        self, n: int, correlation: Correlation, rng: np.random.Generator, correlated: Bool[np.ndarray, " n"] | None = None
    ) -> tuple[Texts, Bool[np.ndarray, " n"]]:
        """Texts whose relation holds exactly where the second value is true (drawn by `share` when not given)."""
        (family, target), (_, partner) = self.locate(correlation.target), self.locate(correlation.partner)
        if correlated is None:
            correlated = draw_correlated(correlation.share, n, rng)
        if family.recipe is not None:
            texts = self.natural_texts(n, rng)
            return family.recipe.correlate(texts, (target, partner), correlation.offset, correlated, rng), correlated

        def relation(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
            left, right = family.label(texts, target), family.label(texts, partner)
            # An absent occurrence has no distance, so its sentinel must not enter the difference.
            return left == right + correlation.offset, (left == ABSENT) | (right == ABSENT)

        name = f"{correlation.target} = {correlation.partner} {correlation.offset:+d}"
        return select_natural(lambda m: self.natural_texts(m, rng), relation, correlated, name), correlated


@dataclass(frozen=True)
class PcfgCapability:
    """One capability on one distribution of texts; a `workbench.examples.Capability`.

    The texts are a function of the seed, the split and the distribution, not of the operand: `count_a` and `count_b` are
    asked of the same strings.
    """

    task: PcfgTask
    plain: str
    """The name without labels."""
    correlation: Correlation | None
    texts: Kind
    labels: Labels = ALL

    @property
    def name(self) -> str:
        """For instance `count_a`, or `count_a>4` where labels are restricted."""
        return f"{self.plain}{self.labels}"

    def draw(self, n: int, seed: int, split: str) -> tuple[Texts, Bool[np.ndarray, " n"] | None]:
        """The texts of a split, and which are correlated (None without a correlation)."""
        family, operand = self.task.locate(self.plain)
        if self.correlation is not None:
            c = self.correlation
            rng = numpy_generator(seed, "pcfg", "texts", split, c.target, c.partner, str(c.offset), str(float(c.share)))
            draw: Callable[[int], Drawn] = lambda m: self.task.correlated_texts(m, c, rng)  # noqa: E731
        else:
            balanced = {"natural": 0.0, "balanced": 1.0, "pretraining": 0.5}[self.texts]
            kind = self.texts if family.recipe is not None else "natural"
            rng = numpy_generator(seed, "pcfg", "texts", split, kind, *([] if kind == "natural" else [family.kind]))
            draw = lambda m: (self.task.mixed_texts(m, family, balanced, rng), None)  # noqa: E731
        return draw_restricted(n, self.labels, draw, lambda texts: family.label(texts, operand))

    def examples(self, n: int, seed: int, split: str = "test") -> Examples:
        """`n` examples; the labels hold every label of the task's families (-1: absent) and, if any, `correlated`.

        Raises:
            UserError: when `n` is below 1.
        """
        if n < 1:
            raise UserError(f"{n} examples of {self.name!r} were asked for; ask for at least 1.")
        texts, correlated = self.draw(n, seed, split)
        flags = {} if correlated is None else {"correlated": torch.from_numpy(correlated.astype(np.int64))}
        return self.task.ask(self.plain, texts, self.chance(), flags)

    def chance(self) -> dict[str, float]:
        """`majority` and, for the other operands of the family, `given count_b`: see `synthetic_tasks.chance`.

        Computed once on `REFERENCE_TEXTS` further texts of the same distribution, so that it does not depend on `n`.
        """
        key = (self.name, self.correlation, self.texts)
        if key not in self.task.chances:
            family, operand = self.task.locate(self.plain)
            texts, _ = self.draw(REFERENCE_TEXTS, 0, "chance reference")
            values = [family.label(texts, i) for i in range(len(family.capabilities))]
            chance = {"majority": best_constant(values[operand])}
            for i, name in enumerate(family.capabilities):
                if i != operand:
                    chance[f"given {name}"] = best_given(values[operand], values[i])
            self.task.chances[key] = chance
        return dict(self.task.chances[key])
