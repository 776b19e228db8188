"""Sites: what components write adds up, a replacement is what TransformerLens' hooks do, and none at all changes nothing."""

from dataclasses import replace

import pytest
import torch

from workbench.models.anatomy import blocks, head_outputs, matrix
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import answer_logits
from workbench.models.lens import lens
from workbench.models.sites import EMBEDDING, Replacement, Site, components, record, replaced
from workbench.protocols import compiled_weights, load_task


@pytest.fixture(params=["gpt2", "llama", "grouped", "compiled"])
def subject(request, make_model, make_grouped, random_examples):
    """`(model, examples)` of every architecture."""
    if request.param == "compiled":
        task = load_task({"kind": "rasp", "length": 6, "letters": 3})
        return build(compiled_weights(task, "count_a"), 0.05), task.capability("count_a").examples(6, 0)
    model = make_grouped() if request.param == "grouped" else make_model(request.param, heads=2)
    return model, random_examples()


def elsewhere(examples):
    """The same questions at the same positions of other texts."""
    return replace(examples, tokens=examples.tokens.roll(1, 0))


def every_site(model):
    last = len(blocks(model))
    inner = [Site(kind, b) for b in range(last) for kind in ("middle", "attention", "mlp", "neurons")]
    return [*components(model), *inner, *(Site("stream", b) for b in range(1, last + 1))]


def test_components_sum_to_the_final_stream(subject):
    model, examples = subject
    last = len(blocks(model))
    found = record(model, examples, every_site(model))
    total = sum(found[site] for site in components(model, heads=False))
    assert torch.allclose(total, found[Site("stream", last)], atol=1e-4)
    for b in range(last):
        assert torch.allclose(found[Site("middle", b)], found[Site("stream", b)] + found[Site("attention", b)], atol=1e-5)
        assert torch.allclose(found[Site("stream", b + 1)], found[Site("middle", b)] + found[Site("mlp", b)], atol=1e-4)
        heads = torch.cat([found[s] for s in components(model) if s.kind == "head" and s.block == b], -1)
        written = heads @ matrix(head_outputs(model)[b]).T
        bias = head_outputs(model)[b].bias
        assert torch.allclose(written + (0 if bias is None else bias), found[Site("attention", b)], atol=1e-4)


def test_putting_back_what_was_there_changes_nothing(subject):
    model, examples = subject
    with torch.no_grad(), check_unchanged(model):
        plain = answer_logits(model, examples)
        for site, value in record(model, examples, every_site(model)).items():
            with replaced(model, {site: Replacement(value)}):
                assert torch.allclose(answer_logits(model, examples), plain, atol=1e-4), site
        assert torch.equal(answer_logits(model, examples), plain)


def test_all_components_of_another_run_give_its_logits(subject):
    model, examples = subject
    other = elsewhere(examples)
    with torch.no_grad():
        for heads in (True, False):
            values = record(model, other, components(model, heads=heads))
            with replaced(model, {site: Replacement(value) for site, value in values.items()}):
                assert torch.allclose(answer_logits(model, examples), answer_logits(model, other), atol=1e-4)


def test_a_stream_or_middle_screens_off_what_came_before(subject):
    """Both the MLP and the skip path read it: the lens' `hook_resid_mid` reaches the first alone."""
    model, examples = subject
    other, last = elsewhere(examples), len(blocks(model)) - 1
    with torch.no_grad():
        for site in (Site("middle", last), Site("stream", last), Site("stream", last + 1)):
            values = record(model, other, [site])
            with replaced(model, {site: Replacement(values[site])}):
                assert torch.allclose(answer_logits(model, examples), answer_logits(model, other), atol=1e-4), site


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("site", "hook"),
    [
        (Site("stream", 1), "blocks.1.hook_resid_pre"),
        (Site("attention", 0), "blocks.0.hook_attn_out"),
        (Site("mlp", 0), "blocks.0.hook_mlp_out"),
        (Site("neurons", 1), "blocks.1.mlp.hook_post"),
        (Site("head", 0, 1), "blocks.0.attn.hook_z"),
    ],
)
def test_one_position_of_one_site_is_what_transformer_lens_does(make_model, random_examples, kind, site, hook):
    model, examples = make_model(kind), random_examples()
    other, n = elsewhere(examples), len(examples)
    where = torch.zeros(examples.tokens.shape, dtype=torch.bool)
    where[torch.arange(n), (examples.answer_position - torch.arange(n) % 3).clamp(min=0)] = True
    value = record(model, other, [site])[site]
    with torch.no_grad(), replaced(model, {site: Replacement(value, where)}):
        ours = answer_logits(model, examples)

    def put(x, hook):
        t = value.shape[1]
        part = x[:, :t, site.head] if site.kind == "head" else x[:, :t]
        part[where[:, :t]] = value[where[:, :t]]
        return x

    theirs = lens(model).run_with_hooks(examples.tokens, fwd_hooks=[(hook, put)])
    assert torch.allclose(ours[:, 0], theirs[torch.arange(n), examples.answer_position], atol=1e-4)
    assert not torch.allclose(ours, answer_logits(model, examples), atol=1e-3)


def test_chosen_positions_are_those_of_whole_sequences(subject):
    model, examples = subject
    at = torch.stack([examples.answer_position, torch.zeros_like(examples.answer_position)], dim=1)
    whole, few = record(model, examples, every_site(model)), record(model, examples, every_site(model), at)
    rows = torch.arange(len(examples))[:, None]
    assert all(torch.equal(few[site], whole[site][rows, at]) for site in whole)


def test_gradients_reach_what_was_put_in(make_model, random_examples):
    model, examples = make_model(), random_examples()
    site = Site("mlp", 1)
    value = record(model, examples, [site])[site].requires_grad_()
    with replaced(model, {site: Replacement(value)}):
        answer_logits(model, examples).logsumexp(-1).sum().backward()
    touched = value.grad.abs().sum(-1) > 0
    assert touched[torch.arange(6), examples.answer_position].all()
    assert touched.sum() == 6  # in the last block nothing else reaches the answer
    model.zero_grad()


def test_a_replacement_shorter_than_the_sequence_leaves_the_rest(make_model, random_examples):
    model, examples = make_model(), random_examples()
    whole = record(model, examples, [EMBEDDING])[EMBEDDING]
    with replaced(model, {EMBEDDING: Replacement(torch.zeros_like(whole[:, :2]))}):
        found = record(model, examples, [Site("stream", 0)])[EMBEDDING]
    assert torch.equal(found[:, 2:], whole[:, 2:])
    assert not found[:, :2].any()


@pytest.mark.parametrize("site", [Site("mlp", 2), Site("stream", 3), Site("head", 0, 2), Site("head", 0)])
def test_what_is_not_there_is_refused(make_model, random_examples, site):
    with pytest.raises(IndexError, match=str(site)):
        record(make_model(), random_examples(), [site])


def test_a_replacement_of_the_wrong_shape_is_refused(make_model, random_examples):
    model, examples = make_model(), random_examples()
    with pytest.raises(ValueError, match="mlp 0 holds"), replaced(model, {Site("mlp", 0): Replacement(torch.zeros(1, 3, 16))}):
        answer_logits(model, examples)
