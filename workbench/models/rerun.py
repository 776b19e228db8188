"""A clean run of a batch, and runs that differ from it somewhere in the residual stream, without what a change cannot reach.

What lies before a change is computed once. In a causal model, so is everything at earlier positions: later ones attend
to the keys and values of the clean run. In the last block only the answer is read, so that a change at one position is one
new key and value. Keys and values are taken where all architectures meet, at torch's scaled dot product attention; a
model that attends otherwise runs whole from the changed block on. Numbers agree with whole runs to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks, final_norm, head_outputs, head_shape, last_block_at, matrix
from workbench.models.forward import answer_tokens, model_inputs, unembed
from workbench.models.resume import resumed
from workbench.models.sites import Site, edited

AT_ONCE = 1_000_000
"""Floats of hidden states that are computed together: larger ones fall out of the caches."""
Rows = Int[Tensor, " r"]
"""Numbers of examples of the batch; one may occur many times, once for every run."""
Logits = Float[Tensor, "r k vocab"]

_Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor | None]
"""`(queries, keys, values [n, heads, t, width], scale) -> attended`, of as many heads each; None: as it would be."""


class CleanRun:
    """One pass over a batch, kept so that changed ones can begin where they differ.

    Args:
        model: of a known architecture.
        batch: on the model's device.
        sites: whose activations are kept in `own`, besides all streams and what every attention writes.
    """

    def __init__(self, model: PreTrainedModel, batch: Examples, sites: Sequence[Site] = ()) -> None:
        self.model, self.batch = model, batch
        self.last = len(blocks(model)) - 1
        self.causal = anatomy(model).causal
        self.answers: Int[Tensor, "n k"] = answer_tokens(batch) - 1
        """Positions whose logits predict the answer."""
        self.inputs = model_inputs(model, batch, shown(batch))
        self.shown = int(self.inputs["input_ids"].shape[1])
        inner = [Site("stream", b) for b in range(self.last + 2)] + [Site("attention", b) for b in range(self.last + 1)]
        self.cache: list[tuple[Tensor, Tensor]] = []
        """Keys and values `[n, heads, t, width]` of every block; of fewer where the model attends otherwise."""

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
            self.cache.append((key, value))

        self.own: dict[Site, Float[Tensor, "n t _"]]
        with _Attention(attend):
            hidden, self.own = _read(model, self.inputs, [*inner, *sites])
        rows = torch.arange(len(batch), device=hidden.device)[:, None]
        self.logits: Float[Tensor, "n k vocab"] = unembed(model, hidden[rows, self.answers])

    @property
    def intercepted(self) -> bool:
        """Whether every block attends by torch's scaled dot product attention."""
        return len(self.cache) == self.last + 1

    @cached_property
    def positions(self) -> Int[Tensor, "n t"]:
        """What the model is told of every token's position."""
        found = self.inputs.get("position_ids")
        n = len(self.batch)
        return torch.arange(self.shown, device=self.answers.device).expand(n, -1) if found is None else found

    @cached_property
    def visible(self) -> Bool[Tensor, "m t t"]:
        """Which keys each query sees, for every example or (m = 1) for all; itself always, so that padding is no NaN."""
        t, device = self.shown, self.answers.device
        seen = torch.ones(1, t, t, dtype=torch.bool, device=device)
        seen = seen.tril() if self.causal else seen
        if self.batch.attention_mask is not None:
            seen = seen & self.batch.attention_mask[:, None, :t]
        return seen | torch.eye(t, dtype=torch.bool, device=device)

    def module(self, block: int, path: str) -> Callable[[Tensor], Tensor]:
        """A part of a block by its name in the anatomy: `mlp`, `mlp_norm`, `mlp_out`; what has no such norm does nothing."""
        where = getattr(anatomy(self.model), path)
        return blocks(self.model)[block].get_submodule(where) if where else nn.Identity()

    def landed(
        self, site: Site, value: Float[Tensor, "*rest _"], pick: Callable[[Tensor], Tensor]
    ) -> tuple[int, Float[Tensor, "*rest d"]]:
        """Where a replaced activation first meets the stream between blocks, and what that stream then is.

        Args:
            site: what is replaced.
            value: by what, at some examples and positions.
            pick: takes the same examples and positions out of activations `[n, t, w]`.

        Returns:
            A block (their number: after the last one) and the stream that it is given at these positions.
        """
        b = site.block
        if site.kind == "stream":
            return b, value
        before = pick(self.own[Site("stream", b)])
        attention = pick(self.own[Site("attention", b)])
        if site.kind in ("middle", "attention", "head"):
            if site.kind == "head":
                value = attention + written(self.model, site, value - pick(self.own[site]))
            middle = value if site.kind == "middle" else before + value
            return b + 1, middle + self.module(b, "mlp")(self.module(b, "mlp_norm")(middle))
        return b + 1, before + attention + (self.module(b, "mlp_out")(value) if site.kind == "neurons" else value)

    def reaches(self, site: Site) -> Bool[Tensor, "n t"]:
        """Positions of the prompt from which a site's activation has a way to the answer; an answer's own tokens are none."""
        place, answer = torch.arange(self.shown, device=self.answers.device), self.batch.answer_position[:, None]
        if site.block == self.last + (site.kind == "stream"):  # nothing attends any more
            return place == answer
        return place <= (answer if self.causal else torch.full_like(answer, self.shown))

    def at_answer(self, final: Float[Tensor, "r k d"]) -> Logits:
        """Logits of final streams at the answer."""
        norm = final_norm(self.model)
        return unembed(self.model, norm(final) if norm else final)

    def final(self, rows: Rows) -> Float[Tensor, "r k d"]:
        """The clean final streams at the answer."""
        return self.own[Site("stream", self.last + 1)][rows[:, None], self.answers[rows]]

    def with_position(self, block: int, rows: Rows, at: Rows, values: Float[Tensor, "r d"]) -> Iterator[tuple[Tensor, Logits]]:
        """Answers of runs in which a block is given another stream at one position.

        Args:
            block: where the stream is changed; their number: after the last one.
            rows: the example of each run.
            at: its position.
            values: the stream there.

        Yields:
            Numbers of some of the runs, and their logits.
        """
        if block > self.last:
            final = torch.where((self.answers[rows] == at[:, None])[..., None], values[:, None], self.final(rows))
            for part in self._parts(len(rows), self.answers.shape[1] * values.shape[1]):
                yield part, self.at_answer(final[part])
        elif block == self.last and self.intercepted:
            yield from self._one_key(rows, at, values)
        else:
            start = self._start(at)
            for part in self._parts(len(rows), (self.shown - start) * values.shape[1]):
                stream = self.own[Site("stream", block)][rows[part], start:].clone()
                stream[torch.arange(len(part), device=part.device), at[part] - start] = values[part]
                yield part, self.with_stream(block, rows[part], start, stream)

    def with_site(
        self, site: Site, rows: Rows, value: Float[Tensor, "r t _"], differs: Bool[Tensor, "r shown"]
    ) -> Iterator[tuple[Tensor, Logits]]:
        """Answers of runs in which a site is replaced everywhere.

        Args:
            site: what is replaced.
            rows: the example of each run.
            value: by what.
            differs: where it is put in, at least once in every run; elsewhere it is not used.

        Yields:
            Numbers of some of the runs, and their logits.
        """
        own = self.own[site]
        for part in self._parts(len(rows), 4 * self.shown * self.own[Site("stream", 0)].shape[2]):
            here = rows[part]
            whole, t = own[here], min(own.shape[1], value.shape[1])
            whole[:, :t] = torch.where(differs[part, :t, None], value[part, :t], whole[:, :t])
            first = differs[part].int().argmax(1)  # the first position of the largest, which is where True begins
            if site.block == self.last + (site.kind == "stream"):
                answers = self.answers[here]
                index = (torch.arange(len(here), device=here.device)[:, None], answers)
                _, landed = self.landed(site, whole[index], lambda x, here=here, a=answers: x[here[:, None], a])
                yield part, self.at_answer(landed)
                continue
            start = self._start(first)
            block, landed = self.landed(site, whole[:, start:].contiguous(), lambda x, here=here, s=start: x[here, s:])
            yield part, self.with_stream(block, here, start, landed)

    def _start(self, at: Tensor) -> int:
        """The first position that must run again; two at least, for one alone takes another way through the attention."""
        return min(int(at.min()), self.shown - 2) if self.causal and self.intercepted and self.shown > 1 else 0

    def _parts(self, count: int, floats: int) -> Iterator[Rows]:
        size = max(1, AT_ONCE // (floats + self.model.config.vocab_size // 4))
        return iter(torch.arange(count, device=self.answers.device).split(size))

    def with_stream(self, block: int, rows: Rows, start: int, stream: Float[Tensor, "r m d"]) -> Logits:
        """Answers of runs in which a block is given this stream from position `start` on; all of them at once.

        Args:
            block: at most the last one.
            rows: the example of each run.
            start: 0 for a model that is not causal or attends otherwise.
            stream: to the last position that is shown.
        """
        model = self.model
        inputs: dict[str, Any] = {name: v[rows] if isinstance(v, Tensor) else v for name, v in self.inputs.items()}
        if start == 0:
            answers = self.answers[rows]
            with resumed(model, block, stream), last_block_at(model, answers):
                return self._at(model.base_model(**inputs).last_hidden_state, answers)
        seen = (self.visible if len(self.visible) == 1 else self.visible[rows])[:, None, start:]
        step = iter(range(block, self.last + 1))

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            old = (_per_head(x, query.shape[1])[rows, :, :start] for x in self.cache[next(step)])
            key, value = (torch.cat(both, dim=2) for both in zip(old, (key, value), strict=True))
            return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)

        answers = self.answers[rows] - start  # nothing behind the first of them is changed
        with resumed(model, block, stream), last_block_at(model, answers), _Attention(attend):
            return self._at(self._rows_alone(self.positions[rows, start:]), answers)

    def _at(self, hidden: Float[Tensor, "r m d"], answers: Int[Tensor, "r k"]) -> Logits:
        return unembed(self.model, hidden[torch.arange(len(hidden), device=hidden.device)[:, None], answers])

    def _rows_alone(self, positions: Int[Tensor, "r m"]) -> Float[Tensor, "r m d"]:
        """A pass over given hidden states whose attention is intercepted, so that mask and tokens do not matter."""
        inputs: dict[str, Any] = {"input_ids": torch.zeros_like(positions), "position_ids": positions}
        if self.causal:  # a mask of four axes is taken as it is; without one a causal mask would be made
            inputs["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=self.model.dtype, device=positions.device)
        return self.model.base_model(**inputs, use_cache=False).last_hidden_state

    def _one_key(self, rows: Rows, at: Rows, values: Float[Tensor, "r d"]) -> Iterator[tuple[Tensor, Logits]]:
        """The last block, where one position has another key and value and only the answer asks.

        Runs of one example stand side by side, so that the clean keys are multiplied once for all of them.
        """
        n, k, d = len(self.batch), self.answers.shape[1], values.shape[1]
        heads = head_shape(self.model)[1]
        order = rows.argsort(stable=True)
        counts = rows.bincount(minlength=n)
        slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows[order]]
        floats = (1 + k) * 4 * d + k * (2 * heads * self.shown + 4 * d) + k * self.model.config.vocab_size // 4
        size = max(1, AT_ONCE // (n * floats))
        for first in range(0, int(counts.max()) if len(rows) else 0, size):
            inside = (slot >= first) & (slot < first + size)
            part, column = order[inside], slot[inside] - first
            shape = (n, min(size, int(counts.max()) - first))
            new = values.new_zeros(*shape, d).index_put((rows[part], column), values[part])
            place = at.new_zeros(shape).index_put((rows[part], column), at[part])
            yield part, self._one_key_each(new, place)[rows[part], column]

    def _one_key_each(self, new: Float[Tensor, "n c d"], place: Int[Tensor, "n c"]) -> Float[Tensor, "n c k vocab"]:
        """As `_one_key` for the same number of runs of every example."""
        (n, c), k = place.shape, self.answers.shape[1]
        every = torch.arange(n, device=place.device)[:, None]
        own = self.own[Site("stream", self.last)][every, self.answers]  # [n, k, d]
        here = self.answers[:, None] == place[:, :, None]  # [n, c, k]
        asking = torch.where(here[..., None], new[:, :, None], own[:, None])
        hidden = torch.cat([new, asking.flatten(1, 2)], dim=1)
        positions = torch.cat([self.positions[every, place], self.positions[every, self.answers].repeat(1, c)], dim=1)
        seen = self.visible.expand(n, -1, -1)[every, self.answers]  # [n, k, t]
        other = torch.arange(self.shown, device=place.device) != place[:, :, None]  # [n, c, t]
        old_seen = (seen[:, None] & other[:, :, None])[:, None]  # [n, 1, c, k, t]
        new_seen = seen.gather(2, place[:, None].expand(-1, k, -1)).transpose(1, 2)[:, None]  # [n, 1, c, k]

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            old_key, old_value = (_per_head(x, query.shape[1]) for x in self.cache[self.last])
            asked = query[:, :, c:] * scale
            old = (asked @ old_key.mT).unflatten(2, (c, k)).masked_fill(~old_seen, -torch.inf)
            now = (asked.unflatten(2, (c, k)) * key[:, :, :c, None]).sum(-1).masked_fill(~new_seen, -torch.inf)
            weight = torch.cat([old, now[..., None]], dim=-1).softmax(-1)
            mixed = weight[..., :-1].flatten(2, 3) @ old_value
            mixed = mixed + (weight[..., -1:] * value[:, :, :c, None]).flatten(2, 3)
            return torch.cat([torch.zeros_like(query[:, :, :c]), mixed], dim=2)

        answers = torch.arange(c, c + c * k, device=place.device).expand(n, -1)
        with resumed(self.model, self.last, hidden), last_block_at(self.model, answers), _Attention(attend):
            final = self._rows_alone(positions)[:, c:]
        return unembed(self.model, final).unflatten(1, (c, k))

    def attended(self, block: int, stream: Float[Tensor, "n t d"]) -> Float[Tensor, "n t w"]:
        """What the heads of a block give, side by side and before the output projection, when it is given this stream."""
        found: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.append(inputs[0])
            raise _Enough

        handle = head_outputs(self.model)[block].register_forward_pre_hook(stop)
        try:
            with resumed(self.model, block, stream):
                self.model.base_model(**self.inputs)
        except _Enough:
            pass
        finally:
            handle.remove()
        return found[0]


def shown(batch: Examples) -> int:
    """Tokens that a causal model needs to be shown for all of the answer to be predicted."""
    return int((answer_tokens(batch) - 1).max()) + 1


def activations(
    model: PreTrainedModel, batch: Examples, sites: Sequence[Site], tokens: int
) -> dict[Site, Float[Tensor, "n t _"]]:
    """Activations of sites when the model is shown so many tokens; as `sites.record`, but of a given length."""
    return _read(model, model_inputs(model, batch, tokens), sites)[1]


def _read(
    model: PreTrainedModel, inputs: dict[str, Any], sites: Sequence[Site]
) -> tuple[Float[Tensor, "n t d"], dict[Site, Float[Tensor, "n t _"]]]:
    """Final hidden states, and the activations of sites."""
    found: dict[Site, Tensor] = {}
    keep = {site: cast(Any, lambda x, site=site: found.__setitem__(site, x)) for site in dict.fromkeys(sites)}
    with edited(model, keep):
        return model.base_model(**inputs).last_hidden_state, found


def written(model: PreTrainedModel, head: Site, value: Float[Tensor, "*rest w"]) -> Float[Tensor, "*rest d"]:
    """What a head writes into the stream, without the output's bias."""
    assert head.head is not None
    weight = matrix(head_outputs(model)[head.block])
    width = weight.shape[1] // head_shape(model)[1]
    return value @ weight[:, head.head * width : (head.head + 1) * width].T


class _Enough(Exception):  # no error: what was wanted has been read
    """Ends a pass."""


class _Attention(TorchFunctionMode):
    """Gives every scaled dot product attention to a function; where that gives nothing, it runs as it would."""

    def __init__(self, attend: _Attend) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch instead of each of its functions."""
        given = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        query, key, value = args[:3]
        scale = given.get("scale")
        found = self.attend(
            query,
            _per_head(key, query.shape[1]),
            _per_head(value, query.shape[1]),
            query.shape[-1] ** -0.5 if scale is None else scale,
        )
        return func(*args, **given) if found is None else found


def _per_head(x: Float[Tensor, "n some t w"], heads: int) -> Float[Tensor, "n heads t w"]:
    """Keys or values that several heads share, once for each of them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
