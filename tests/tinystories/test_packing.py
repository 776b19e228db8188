"""Batches against naive twins: the whole sequence of an epoch laid out, and rows put together token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystories.packing import packed, single
from tinystories.store import TokenStore, tokenise
from workbench.errors import UserError
from workbench.seeds import numpy_generator

BOS, EOS, PAD = 0, 1, 2


def store_of(lengths: list[int]) -> TokenStore:
    """Stories whose tokens are all different, from 3 on."""
    offsets = np.cumsum([0, *lengths])
    return TokenStore(Path("nowhere"), np.arange(3, 3 + offsets[-1], dtype=np.uint16), offsets, "", "", (0, 0))


def sequence(store: TokenStore, seed: int, epoch: int, eos: int | None, stories: list[int]) -> list[int]:
    """The naive twin: a whole epoch, laid end to end."""
    order = numpy_generator(seed, "story order", epoch).permutation(len(stories))
    found = []
    for i in order:
        found += [BOS, *store.story(stories[i]).tolist()] + ([] if eos in (None, BOS) else [eos])
    return found


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@settings(max_examples=150)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.sampled_from([None, BOS, EOS]), st.data())
def test_windows_are_those_of_the_sequences_laid_end_to_end(lengths, length, batch_size, seed, eos, data):
    store = store_of(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True), label="stories")
    total = len(sequence(store, seed, 0, eos, chosen))
    length = min(length, total)
    batches = packed(store, length, batch_size, seed, BOS, eos, stories=chosen)
    steps = 3 * (total // length) // batch_size + 1
    windows = []
    for epoch in range(steps * batch_size // (total // length) + 1):
        whole = sequence(store, seed, epoch, eos, chosen)
        windows += [whole[a : a + length] for a in range(0, total - length + 1, length)]
    expected = [windows[step * batch_size : (step + 1) * batch_size] for step in range(steps)]
    for step in np.random.default_rng(0).permutation(steps).tolist():  # in any order, nothing replayed
        assert batches(step).tolist() == expected[step]
    assert batches.steps_per_epoch == (total // length) / batch_size


@given(LENGTHS, st.integers(1, 9))
def test_every_token_comes_once_an_epoch_but_for_the_last_part_of_a_window(lengths, length):
    store = store_of(lengths)
    total = store.n_tokens + len(store)
    length = min(length, total)
    batches = packed(store, length, 1, 5, BOS)
    seen = [token for step in range(int(batches.steps_per_epoch)) for token in batches(step).flatten().tolist() if token != BOS]
    assert len(seen) == len(set(seen))
    left_out = set(store.tokens.tolist()) - set(seen)
    assert len(left_out) <= total % length


def test_epochs_and_seeds_have_orders_of_their_own():
    store = store_of([3] * 50)
    a, b = packed(store, 200, 1, 0, BOS), packed(store, 200, 1, 1, BOS)
    assert len({tuple(batch.flatten().tolist()) for batch in (a(0), a(1), a(2), b(0))}) == 4
    assert torch.equal(a(0), packed(store, 200, 1, 0, BOS)(0))
    assert sorted(a(0).flatten().tolist()) == sorted(a(1).flatten().tolist())


def test_batches_are_int64_and_ones_own():
    batches = packed(store_of([5, 6]), 4, 2, 0, BOS)
    first = batches(0)
    assert (first.dtype, tuple(first.shape)) == (torch.int64, (2, 4))
    kept = first.clone()
    first.zero_()
    assert torch.equal(batches(0), kept)


def test_a_real_store_packs_whole_stories_behind_their_bos(own_tokenizer, made_up, tmp_path):
    store = tokenise(made_up, own_tokenizer, tmp_path / "s", "c")
    assert own_tokenizer.bos_id == BOS
    text = packed(store, 512, 4, 0, own_tokenizer.bos_id, own_tokenizer.eos_id)(0).flatten().tolist()
    pieces = " ".join(map(str, text)).split(f" {EOS} {BOS} ")
    stories = [own_tokenizer.decode(list(map(int, piece.split()))) for piece in pieces[:-1]]
    assert len(stories) > 10
    assert set(stories) <= set(made_up)


# Rows


def row(story, prefix, length, width, eos, loss_on_prefix):
    """The naive twin: `(token, seen, target)` of one row."""
    cells = [(BOS, True, False)] + [(t, True, loss_on_prefix) for t in prefix] + [(t, True, True) for t in [*story, eos]]
    return (cells[:length] + [(PAD, False, False)] * width)[:width]


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(7, 20),
    st.sampled_from([BOS, EOS]),
    st.booleans(),
)
def test_rows_are_bos_prefix_story_eos_and_padding(sizes, length, eos, loss_on_prefix):
    store = store_of([n for n, _ in sizes])
    prefixes = [np.arange(500, 500 + m) for _, m in sizes]
    indices = list(range(len(sizes)))[::-1]
    rows = single(store.stories(indices), length, PAD, BOS, eos, [prefixes[i] for i in indices], loss_on_prefix)
    width = min(length, max(n + m + 2 for n, m in sizes))
    expected = [row(store.story(i).tolist(), prefixes[i].tolist(), length, width, eos, loss_on_prefix) for i in indices]
    found = [list(zip(*cells, strict=True)) for cells in zip(*(t.tolist() for t in rows[:3]), strict=True)]
    assert found == expected
    assert rows.truncated.tolist() == [1 + sum(sizes[i]) > length for i in indices]


def test_rows_without_prefixes_are_as_with_empty_ones():
    store = store_of([4, 2, 7])
    with_empty = single(store.stories([2, 0]), 6, PAD, BOS, EOS, [np.array([], np.int64)] * 2)
    without = single(store.stories([2, 0]), 6, PAD, BOS, EOS)
    assert all(torch.equal(a, b) for a, b in zip(with_empty, without, strict=True))
    assert without.tokens.tolist() == [[BOS, 9, 10, 11, 12, 13], [BOS, 3, 4, 5, 6, EOS]]
    assert without.truncated.tolist() == [True, False]
    assert [t.dtype for t in without] == [torch.int64, torch.bool, torch.bool, torch.bool]


def test_a_story_that_just_fits_is_whole_though_its_eos_is_not_there():
    rows = single(store_of([4]).stories([0]), 5, PAD, BOS, EOS)
    assert rows.tokens.tolist() == [[BOS, 3, 4, 5, 6]]
    assert rows.truncated.tolist() == [False]


# Bad input


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: packed(s, 0, 1, 0, BOS), "length 0 and batch_size 1 must both be at least 1"),
        (lambda s: packed(s, 1, 0, 0, BOS), "length 1 and batch_size 0"),
        (lambda s: packed(s, 10, 1, 0, BOS), "2 stories have 9 tokens, separators included, fewer than one window of 10"),
        (lambda s: packed(s, 2, 1, 0, BOS, stories=[]), "no stories were chosen"),
        (lambda s: packed(s, 2, 1, 0, BOS, stories=[0, 2]), "there is no story 2 in a store of 2; indices go from 0 to 1"),
        (lambda s: single([], 9, PAD, BOS, EOS), "no stories were chosen"),
        (lambda s: single(s.stories([0]), 9, PAD, BOS, EOS, []), "there are 0 prefixes for 1 stories"),
        (
            lambda s: single(s.stories([0]), 4, PAD, BOS, EOS, [np.arange(3)]),
            "the prefix of row 0 has 3 tokens.*do not fit in 4",
        ),
        (lambda s: single(s.stories([0]), 1, PAD, BOS, EOS), "do not fit in 1"),
    ],
)
def test_bad_input_is_one_sentence(ask, message):
    with pytest.raises(UserError, match=message):
        ask(store_of([3, 4]))
