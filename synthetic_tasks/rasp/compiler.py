"""From a RASP program to transformer weights in a named residual basis, by the known constructions [Lindner+23].

Categorical operators are one-hot: a direction of the residual stream per value (`tokens:a`, `indices:3`), `ONE` along it and
0 along the others. A numerical one is the coordinate along one direction. Operators are placed in the first sublayer that
finds their inputs written:

- a map is one neuron per input value; a sequence map one per pair of values, `relu(left + right - ONE)`;
- a selector is a bilinear form on two one-hot bases. BOS is attended with half the strength of a selected column, so that a
  row that selects nothing reads BOS, which has no value;
- a selector width is one head that always attends BOS as well and reads it alone: 1 / (width + 1), which the MLP maps back
  to a one-hot width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from synthetic_tasks.rasp.nodes import (
    TOKENS,
    Aggregate,
    Categorical,
    Indices,
    Map,
    Mean,
    NumericalMap,
    Operator,
    Select,
    SequenceMap,
    Tokens,
    Value,
    Width,
    in_order,
    inputs,
    values,
)
from synthetic_tasks.rasp.vocabulary import BOS, Vocabulary
from workbench.protocols import Compiled

ONE = 2.0
"""The coordinate of a categorical value along its direction. Noise on the weights enters the logits of attention relative to
it on one side, and relative to the weights of queries and keys, which shrink as it grows, on the other."""
COLDNESS = 100.0
"""Query times key of a column that an aggregate selects, before the division by sqrt(head_dim)."""
COLDEST = 14.0
"""Smallest such logit after the division: a column that is not selected then weighs e^-14."""
LEAK = 0.1
"""Share of the gap between two widths that the columns which are not selected may add up to. A width is read from HOW MUCH
BOS is attended, so that noise on a logit is an error in it; its head is therefore no colder than this leak demands."""
WIDTH_SCALE = 100.0
"""1 / (width + 1) is written times this, so that noise on the weights does not reach the gaps between widths."""
ANSWER_LOGIT = 10.0
"""Logit of the answer, the others' being 0. A compiled model should be as sure as a trained one and no surer: at 10 the
right of 58 tokens has a probability of .997 and a wrong answer costs 10 nats, so that its gradient is that of any other
classifier. At 1 the model would be at .05 and training would first sharpen it; at 100 a wrong answer would cost 100 nats."""


def label(node: Operator, value: Value) -> str:
    """The name of a direction: `is_a:1`, and `key:a,3` for a tuple."""
    said = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{node.label}:{said}"


def slot(node: Operator) -> int:
    """The sublayer that writes an operator: 2 b for the attention of block b, 2 b + 1 for its MLP, -1 for the embedding."""
    ready = max((slot(source) for source in inputs(node)), default=-1)
    match node:
        case Tokens() | Indices():
            return -1
        case Map() | NumericalMap() | SequenceMap():
            return ready + 1 if ready % 2 == 0 else ready + 2
        case Aggregate() | Mean() | Width():
            attention = ready + 1 if ready % 2 else ready + 2
            return attention + isinstance(node, Width)


@dataclass(frozen=True)
class _Head:
    """Key and query by direction and head dimension, value and output by direction."""

    select: Select
    reads: Sequence[str]
    writes: Sequence[str]
    gain: float
    """From what is read to what is written."""
    bos: float
    """Strength of BOS, 1 being that of a selected column."""
    logit: float | None = None
    """Of a selected column; by `COLDNESS` when None."""


@dataclass(frozen=True)
class _Neuron:
    """relu(sum of inputs + bias), written along its outputs."""

    name: str
    inputs: Mapping[str, float]
    bias: float
    outputs: Mapping[str, float]


@dataclass
class _Block:
    heads: list[_Head] = field(default_factory=list[_Head])
    neurons: list[_Neuron] = field(default_factory=list[_Neuron])


def compile_program(output: Operator, vocabulary: Vocabulary, length: int) -> Compiled:
    """The weights of a program for texts of up to `length` letters behind a BOS token.

    The logit of a categorical output's value is that of the token of its name; a numerical output is the logit of the last
    token of the vocabulary.

    Args:
        output: the operator that is read, at every position.
        vocabulary: letters and answers; it must name every value of the output.
        length: largest number of letters.
    """
    builder = _Builder(vocabulary, length)
    needed = in_order(output)
    embedded = [TOKENS, *(node for node in needed if isinstance(node, Indices))]
    blocks = [_Block() for _ in range(max(0, slot(output)) // 2 + 1)]
    for node in dict.fromkeys([*embedded, *needed]):
        builder.place(node, blocks[max(0, slot(node)) // 2])
    return builder.assemble(output, blocks)


class _Builder:
    def __init__(self, vocabulary: Vocabulary, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length
        self.bos = f"tokens:{BOS}"
        self.directions = [self.bos]

    def names(self, node: Categorical) -> list[str]:
        return [label(node, value) for value in values(node, self.vocabulary.letters, self.length)]

    def add(self, *directions: str) -> None:
        if clash := set(directions) & set(self.directions):
            raise ValueError(f"directions {sorted(clash)} are named twice; give every operator of a program its own label")
        self.directions += directions

    def place(self, node: Operator, block: _Block) -> None:
        """Name the directions of an operator, and put the heads and neurons that write them into its block."""
        match node:
            case Tokens() | Indices():
                self.add(*self.names(node))
            case Map():
                self.add(*self.names(node))
                for value in values(node.source, self.vocabulary.letters, self.length):
                    source, target = label(node.source, value), label(node, node.function(value))
                    block.neurons.append(_Neuron(f"{source} → {target}", {source: 1.0}, 0.0, {target: 1.0}))
            case NumericalMap():
                self.add(node.label)
                for value in values(node.source, self.vocabulary.letters, self.length):
                    source, number = label(node.source, value), node.function(value)
                    block.neurons.append(
                        _Neuron(f"{source} → {node.label} {number:+g}", {source: 1.0}, 0.0, {node.label: number / ONE})
                    )
            case SequenceMap():
                self.add(*self.names(node))
                for a in values(node.left, self.vocabulary.letters, self.length):
                    for b in values(node.right, self.vocabulary.letters, self.length):
                        left, right = label(node.left, a), label(node.right, b)
                        target = label(node, node.function(a, b))
                        name = f"{left} and {right} → {target}"
                        block.neurons.append(_Neuron(name, {left: 1.0, right: 1.0}, -ONE, {target: 1.0}))
            case Aggregate():
                self.add(*self.names(node))
                block.heads.append(_Head(node.selector, self.names(node.source), self.names(node), 1.0, bos=0.5))
            case Mean():
                self.add(node.label)
                block.heads.append(_Head(node.selector, [node.source.label], [node.label], 1.0, bos=0.5))
            case Width():
                share = f"{node.label}:1/(d+1)"
                self.add(share, *self.names(node))
                # The leak of n columns, n e^-logit, against the narrowest gap, 1 / (n + 2) of the share.
                logit = math.log(self.length * (self.length + 2) / LEAK)
                block.heads.append(_Head(node.selector, [self.bos], [share], WIDTH_SCALE / ONE, bos=1.0, logit=logit))
                block.neurons += self.discretise(node, share)

    def discretise(self, node: Width, share: str) -> list[_Neuron]:
        """Neurons from 1 / (d + 1) to a one-hot d: two per threshold make a step that is 1 where the width is at least d.

        The steps rise as the share falls. So a neuron is silent where the width is below its own, and at most the width plus
        1.5 elsewhere: what noise on its output weights adds stays small.
        """
        neurons = [
            # BOS itself has no width, or rows that look for the width 0 would look at it.
            _Neuron(f"not {BOS} → {label(node, 0)}", {self.bos: -1.0}, ONE, {label(node, 0): 1.0}),
        ]
        for d in range(1, self.length + 1):
            above, below = WIDTH_SCALE / d, WIDTH_SCALE / (d + 1)  # the shares of the widths d - 1 and d
            slope, threshold = 4 / (above - below), (above + below) / 2  # the two shares lie 2 from the middle of the ramp
            written = {label(node, d): ONE, label(node, d - 1): -ONE}
            for end, sign in ((0.5, 1.0), (-0.5, -1.0)):
                name = f"{node.label} ≥ {d}, {'from' if sign > 0 else 'up to'} 1"
                outputs = {direction: sign * weight for direction, weight in written.items()}
                neurons.append(_Neuron(name, {share: -slope}, slope * threshold + end, outputs))
        return neurons

    def assemble(self, output: Operator, blocks: Sequence[_Block]) -> Compiled:
        """Arrays of the sizes that the largest block needs."""
        heads = max(1, *(len(block.heads) for block in blocks))
        needs = [max(len(self.names(h.select.keys)) + 1, len(h.reads)) for block in blocks for h in block.heads]
        head_dim = max(needs, default=1)
        hidden = max(1, *(len(block.neurons) for block in blocks))
        weights = self.embeddings()
        for i, block in enumerate(blocks):
            attention, mlp = f"model.blocks.{i}.attention.", f"model.blocks.{i}.mlp."
            weights |= {attention + name: w for name, w in self.attention(block.heads, heads, head_dim).items()}
            weights |= {mlp + name: w for name, w in self.mlp(block.neurons, hidden).items()}
        weights["head.weight"], answers = self.head(output)
        return Compiled(
            token_names=self.vocabulary.names,
            context=self.length + 1,
            blocks=len(blocks),
            heads=heads,
            head_dim=head_dim,
            width=len(self.directions),
            hidden=hidden,
            residual_labels=tuple(self.directions),
            neuron_labels=tuple(
                tuple(neuron.name for neuron in block.neurons) + ("",) * (hidden - len(block.neurons)) for block in blocks
            ),
            answers=answers,
            logit_scale=1.0 if isinstance(output, Mean | NumericalMap) else ANSWER_LOGIT / ONE,
            weights=weights,
        )

    def unit(self, direction: str) -> Float[np.ndarray, " width"]:
        unit = np.zeros(len(self.directions))
        unit[self.directions.index(direction)] = 1.0
        return unit

    def embeddings(self) -> dict[str, np.ndarray]:
        tokens = np.zeros((len(self.vocabulary.names), len(self.directions)))
        for name in (BOS, *self.vocabulary.letters):
            tokens[self.vocabulary.id(name)] = ONE * self.unit(f"tokens:{name}")
        positions = np.zeros((self.length + 1, len(self.directions)))
        for i in range(self.length):
            if f"indices:{i}" in self.directions:  # a program may not need them; BOS, at position 0, has none
                positions[i + 1] = ONE * self.unit(f"indices:{i}")
        return {"model.token_embedding.weight": tokens, "model.position_embedding.weight": positions}

    def attention(self, made: Sequence[_Head], heads: int, head_dim: int) -> dict[str, np.ndarray]:
        """Dimension j of a head asks whether the key has its j-th value, the last one whether it is BOS."""
        width, inner = len(self.directions), heads * head_dim
        query, key, value = (np.zeros((inner, width)) for _ in range(3))
        bias, out = np.zeros(inner), np.zeros((width, inner))
        for number, head in enumerate(made):
            first = number * head_dim
            logit = max(COLDNESS / math.sqrt(head_dim), COLDEST) if head.logit is None else head.logit
            # Both factors alike: noise on either is then multiplied by the least.
            each = math.sqrt(logit * math.sqrt(head_dim)) / ONE
            keys, queries = (
                values(node, self.vocabulary.letters, self.length) for node in (head.select.keys, head.select.queries)
            )
            for j, k in enumerate(keys):
                key[first + j] = each * self.unit(label(head.select.keys, k))
                for q in queries:
                    if head.select.predicate(k, q):
                        query[first + j] += each * self.unit(label(head.select.queries, q))
            key[first + len(keys)] = each * self.unit(self.bos)
            bias[first + len(keys)] = each * ONE * head.bos
            for j, (source, target) in enumerate(zip(head.reads, head.writes, strict=True)):
                value[first + j] = math.sqrt(head.gain) * self.unit(source)
                out[:, first + j] = math.sqrt(head.gain) * self.unit(target)
        return {
            "query.weight": query,
            "query.bias": bias,
            "key.weight": key,
            "value.weight": value,
            "output.weight": out,
        }

    def mlp(self, neurons: Sequence[_Neuron], hidden: int) -> dict[str, np.ndarray]:
        width = len(self.directions)
        first, bias, second = np.zeros((hidden, width)), np.zeros(hidden), np.zeros((width, hidden))
        for i, neuron in enumerate(neurons):
            bias[i] = neuron.bias
            for direction, weight in neuron.inputs.items():
                first[i] += weight * self.unit(direction)
            for direction, weight in neuron.outputs.items():
                second[:, i] += weight * self.unit(direction)
        return {"input.weight": first, "input.bias": bias, "output.weight": second}

    def head(self, output: Operator) -> tuple[np.ndarray, dict[str, str]]:
        if isinstance(output, Mean | NumericalMap):
            answers = {output.label: self.vocabulary.names[-1]}
        else:
            found = values(output, self.vocabulary.letters, self.length)
            answers = {label(output, value): str(value) for value in found}
        weight = np.zeros((len(self.vocabulary.names), len(self.directions)))
        for direction, token in answers.items():
            weight[self.vocabulary.id(token)] = self.unit(direction)
        return weight, answers
