"""Swaps and mixtures of two models: all of it is the other model, none of it changes nothing, one component is what hooks do."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from workbench.models.anatomy import head_outputs, head_shape, matrix, neuron_shape
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import answer_logits, answer_tokens, nll
from workbench.models.mixing import inner, mixed
from workbench.models.sites import EMBEDDING, Replacement, Site, components, record, replaced
from workbench.models.swaps import Swap, answers, swap_sites, swapped_answers
from workbench.protocols import compiled_weights, load_task


def stirred(model, seed=11, scale=0.3):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return other


@pytest.fixture(params=["gpt2", "llama", "grouped", "compiled"])
def two(request, make_model, make_grouped, random_examples):
    """`(receiver, donor, examples)` of every architecture, in float64; every weight differs."""
    if request.param == "compiled":
        task = load_task({"kind": "rasp", "length": 6, "letters": 3})
        receiver = build(compiled_weights(task, "count_a"), 0.05).double()
        return receiver, stirred(receiver, scale=0.1), task.capability("count_a").examples(6, 0)
    receiver = make_grouped(torch.float64) if request.param == "grouped" else make_model(request.param, dtype=torch.float64)
    return receiver, stirred(receiver), random_examples(k=2, t=11)


def ones(model, value=1.0):
    return torch.full(head_shape(model), value).double(), torch.full(neuron_shape(model), value).double()


def shown(examples):
    """The same texts, read up to the position that predicts the last token of an answer."""
    return replace(examples, answer_position=answer_tokens(examples)[:, -1] - 1)


def final(model, examples):
    """The residual stream after the last block, at the answers, as the norm or head is given it."""
    last = Site("stream", head_shape(model)[0])
    at = answer_tokens(examples) - 1
    whole = record(model, shown(examples), [last])[last]
    return whole[torch.arange(len(examples))[:, None], at]


@torch.no_grad()
def test_every_component_of_the_donor_gives_its_final_stream_and_with_its_norm_and_head_its_logits(two):
    receiver, donor, examples = two
    embedded = Replacement(record(donor, shown(examples), [EMBEDDING])[EMBEDDING])
    given, hybrid = inner(donor, examples), with_readout_of(receiver, donor)
    with check_unchanged(receiver, donor), mixed(receiver, given, *ones(receiver)):
        # The embedding alone is missing: not yet the donor's.
        assert not torch.allclose(final(receiver, examples), final(donor, examples), atol=1e-3)
        with replaced(receiver, {EMBEDDING: embedded}):
            assert torch.allclose(final(receiver, examples), final(donor, examples), atol=1e-9)
            assert not torch.allclose(answer_logits(receiver, examples), answer_logits(donor, examples), atol=1e-3)
    with mixed(hybrid, given, *ones(receiver)), replaced(hybrid, {EMBEDDING: embedded}):
        assert torch.allclose(answer_logits(hybrid, examples), answer_logits(donor, examples), atol=1e-9)


def with_readout_of(receiver, donor):
    """A copy of the receiver with the donor's final norm and head."""
    hybrid, names = copy.deepcopy(receiver), [n for n, _ in receiver.named_parameters()]
    parts = ("lm_head", "head", "transformer.ln_f", "model.norm")
    with torch.no_grad():
        for name in names:
            if name.rpartition(".")[0] in parts:
                hybrid.get_parameter(name).copy_(donor.get_parameter(name))
    return hybrid


@torch.no_grad()
def test_the_whole_stream_after_the_last_block_is_all_components_at_once(two):
    receiver, donor, examples = two
    hybrid = with_readout_of(receiver, donor)
    logits, changed = Swap(hybrid, donor, examples, swap_sites(hybrid)).logits(Site("stream", head_shape(receiver)[0]))
    assert changed.all()
    assert torch.allclose(logits, answer_logits(donor, examples), atol=1e-9)


@torch.no_grad()
def test_nothing_of_the_donor_is_the_receiver_bit_for_bit(two):
    receiver, donor, examples = two
    plain = answer_logits(receiver, examples)
    with mixed(receiver, inner(donor, examples), *ones(receiver, 0.0)):
        assert torch.equal(answer_logits(receiver, examples), plain)
    assert torch.equal(answer_logits(receiver, examples), plain)  # and the hooks are gone


@torch.no_grad()
def test_a_swap_that_changes_nothing_says_so(two):
    """The same activations, no position, or a position that the answer cannot see: the receiver's logits bit for bit."""
    receiver, donor, examples = two
    sites, last = swap_sites(receiver), head_shape(receiver)[0] - 1
    nowhere, elsewhere = (torch.zeros(examples.tokens.shape, dtype=torch.bool) for _ in range(2))
    elsewhere[:, 0] = True
    swap, same = Swap(receiver, donor, examples, sites), Swap(receiver, receiver, examples, sites)
    for site in sites:
        after_all_attention = site.block == last + (site.kind == "stream")
        for logits, changed, silent in (
            (*swap.logits(site, nowhere), True),
            (*same.logits(site), True),
            (*swap.logits(site, elsewhere), after_all_attention),
            (*swap.logits(site), False),
        ):
            assert changed.any() != silent, site
            assert torch.equal(logits, swap.mine.logits) == silent, site


@torch.no_grad()
def test_what_the_mask_hides_is_no_change(make_model, left_padded):
    receiver = make_model()
    swap = Swap(receiver, stirred(receiver), left_padded, swap_sites(receiver))
    first = torch.zeros(left_padded.tokens.shape, dtype=torch.bool)
    first[:, 0] = True
    _, changed = swap.logits(EMBEDDING, first)
    assert changed.tolist() == left_padded.attention_mask[:, 0].tolist()
    assert 0 < changed.sum() < len(changed)


@torch.no_grad()
def test_random_changes_are_as_large_as_the_donors_and_point_elsewhere(two):
    receiver, donor, examples = two
    sites = swap_sites(receiver)
    plain = Swap(receiver, donor, examples, sites)
    noisy = [Swap(receiver, donor, examples, sites, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    for site in sites:
        where, value = plain._whole(site)
        drawn = [swap._whole(site)[1] - plain.mine.own[where] for swap in noisy]
        change = value - plain.mine.own[where]
        assert torch.allclose(drawn[0].norm(dim=-1), change.norm(dim=-1)), site
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.allclose(drawn[0], drawn[2])
        assert torch.cosine_similarity(drawn[0], change, dim=-1).mean().abs() < 0.4, site


@torch.no_grad()
@pytest.mark.parametrize("places", ["all", "answer", "some", "one"])
@pytest.mark.slow
def test_one_component_at_a_time_is_what_hooks_on_the_whole_model_do(two, places):
    receiver, donor, examples = two
    n = len(examples)
    where = torch.zeros(examples.tokens.shape, dtype=torch.bool)
    if places == "answer":
        where[torch.arange(n)[:, None], answer_tokens(examples) - 1] = True
    elif places == "some":
        where[:, 1:4] = True
    elif places == "one":  # another one of each example
        where[torch.arange(n), torch.arange(n) % int(examples.answer_position.min() + 1)] = True
    swap, plain = Swap(receiver, donor, examples, swap_sites(receiver)), answer_logits(receiver, examples)
    moved = 0
    for site in swap_sites(receiver):
        if site.kind == "head":
            here, value = Site("attention", site.block), changed_by_one_head(receiver, donor, examples, site)
        else:
            here, value = site, record(donor, shown(examples), [site])[site]
        with replaced(receiver, {here: Replacement(value, None if places == "all" else where)}):
            naive = answer_logits(receiver, examples)
        given = None if places == "all" else where
        assert torch.allclose(swap.logits(site, given)[0], naive, atol=1e-9), site
        moved += not torch.allclose(naive, plain, atol=1e-6)
    assert moved > len(swap_sites(receiver)) / 3


def changed_by_one_head(receiver, donor, examples, site):
    """The receiver's attention output with one head's term of the sum exchanged, term by term."""
    heads = head_shape(receiver)[1]
    attention = Site("attention", site.block)
    total = torch.zeros_like(record(receiver, shown(examples), [attention])[attention])
    for h in range(heads):
        model = donor if h == site.head else receiver
        one = Site("head", site.block, h)
        z, projection = record(model, shown(examples), [one])[one], head_outputs(model)[site.block]
        weight = matrix(projection)[:, h * z.shape[-1] : (h + 1) * z.shape[-1]]
        total += torch.einsum("ntw,dw->ntd", z, weight)
        if projection.bias is not None:
            total += projection.bias / heads
    return total


@torch.no_grad()
def test_a_mixture_of_whole_blocks_or_single_heads_is_the_swap(two):
    receiver, donor, examples = two
    swap, given = Swap(receiver, donor, examples, swap_sites(receiver)), inner(donor, examples)
    for site in swap_sites(receiver):
        heads, neurons = ones(receiver, 0.0)
        if site.kind == "head":
            heads[site.block, site.head] = 1
        elif site.kind == "attention":
            heads[site.block] = 1
        elif site.kind == "mlp":
            neurons[site.block] = 1
        else:
            continue
        swapped, _ = swap.logits(site)
        with mixed(receiver, given, heads, neurons):
            assert torch.allclose(answer_logits(receiver, examples), swapped, atol=1e-9), site


def test_shares_have_the_slopes_of_finite_differences(two):
    receiver, donor, examples = two
    given, step = inner(donor, examples), 1e-3  # the norm of Llama computes in float32 whatever the model's precision
    shares = [s.requires_grad_() for s in ones(receiver, 0.3)]

    def loss():
        with mixed(receiver, given, *shares):
            return answer_logits(receiver, examples).logsumexp(-1).sum()

    slopes = torch.autograd.grad(loss(), shares)
    with torch.no_grad():
        for share, slope in zip(shares, slopes, strict=True):
            for at in ((0, 0), (share.shape[0] - 1, share.shape[1] - 1)):
                share[at] += step
                up = loss()
                share[at] -= 2 * step
                down = loss()
                share[at] += step
                assert (up - down) / (2 * step) == pytest.approx(slope[at].item(), rel=2e-3, abs=1e-3)
    assert all(p.grad is None for p in receiver.parameters())


def test_answers_are_read_over_batches_as_one_by_one(make_model, random_examples, monkeypatch):
    monkeypatch.setattr("workbench.models.swaps.BATCH", 4)
    receiver = make_model()
    donor, examples = stirred(receiver), random_examples(n=10)
    where = torch.zeros(examples.tokens.shape, dtype=torch.bool)
    where[torch.arange(10), examples.answer_position] = True
    found = swapped_answers(receiver, donor, examples, swap_sites(receiver), {"all": None, "answer": where})
    assert len(found) == 2 * len(swap_sites(receiver))
    swap = Swap(receiver, donor, examples, swap_sites(receiver))
    for (place, site), answered in found.items():
        logits, changed = swap.logits(site, where if place == "answer" else None)
        loss = -logits.log_softmax(-1).gather(2, examples.answer[..., None])[..., 0].sum(1)
        assert torch.equal(answered.given, logits.argmax(-1))
        assert torch.allclose(answered.loss, loss, atol=1e-5)
        assert torch.equal(answered.changed, changed)
    alone = answers(receiver, examples)
    assert torch.equal(alone.given, answer_logits(receiver, examples).argmax(-1))
    assert torch.allclose(alone.loss, nll(receiver, examples))
    assert not alone.changed.any()


def test_shares_of_the_wrong_shape_are_refused(make_model, random_examples):
    model, examples = make_model(), random_examples()
    with (
        pytest.raises(ValueError, match="do not fit"),
        mixed(model, inner(model, examples), torch.ones(2, 3), torch.ones(2, 24)),
    ):
        pass


def test_components_and_swap_sites_name_the_same_writers(make_model):
    model = make_model()
    writers = [s for s in swap_sites(model) if s.kind in ("head", "mlp") or s == EMBEDDING]
    assert writers == components(model)
