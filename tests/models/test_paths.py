"""Path patching against a naive twin that freezes everything by replacements, and against TransformerLens' forks."""

from dataclasses import replace

import pytest
import torch

from workbench.models.anatomy import anatomy, blocks, head_outputs, head_shape, matrix
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import answer_logits
from workbench.models.lens import lens
from workbench.models.patching import Donor
from workbench.models.paths import connected, path_grid, receivers_of, senders_of
from workbench.models.sites import EMBEDDING, Replacement, Site, components, record, replaced
from workbench.protocols import compiled_weights, load_task


@pytest.fixture(params=["gpt2", "llama", "grouped", "compiled"])
def subject(request, make_model, make_grouped, random_examples):
    if request.param == "compiled":
        task = load_task({"kind": "rasp", "length": 6, "letters": 3})
        return build(compiled_weights(task, "count_a"), 0.05), task.capability("count_a").examples(6, 0)
    model = make_grouped() if request.param == "grouped" else make_model(request.param, blocks=3)
    return model, random_examples()


def elsewhere(examples):
    tokens = examples.tokens.clone()
    tokens[:, 2:] = tokens[:, 2:].roll(1, 0)
    return replace(examples, tokens=tokens)


def all_paths(model):
    return [(s, r) for s in senders_of(model) for r in receivers_of(model) if connected(s, r)]


@torch.no_grad()
def naive(model, examples, other, sender, receiver):
    """Two passes: the first reads the receiver with its block's input changed, the second puts that into a clean run.

    In the first pass every other component is put back to what it was, so that the change comes by the direct path alone.
    """
    own, theirs = (record(model, e, components(model)) for e in (examples, other))
    change = theirs[sender] - own[sender]
    if sender.kind == "head":
        width = change.shape[-1]
        change = change @ matrix(head_outputs(model)[sender.block])[:, sender.head * width : (sender.head + 1) * width].T
    if receiver.kind == "stream":
        final = record(model, examples, [receiver])[receiver]
        prompt = torch.arange(final.shape[1]) <= examples.answer_position[:, None]
        with replaced(model, {receiver: Replacement(final + change * prompt[..., None])}):
            return answer_logits(model, examples)
    # The stream just before the receiver is the one that it reads.
    before = Site("stream" if receiver.kind == "head" else "middle", receiver.block)
    clean = record(model, examples, [before])[before]
    with replaced(model, {before: Replacement(clean + change)}):
        changed = record(model, examples, [receiver])[receiver]
    where = torch.arange(changed.shape[1]) <= examples.answer_position[:, None]
    where = where if anatomy(model).causal else torch.ones_like(where)
    with replaced(model, {receiver: Replacement(changed, where)}):
        return answer_logits(model, examples)


def test_every_path_equals_the_naive_twin(subject):
    model, examples = subject
    other, paths = elsewhere(examples), all_paths(model)[::3]
    with check_unchanged(model):
        found = path_grid(model, examples, Donor(model, other), paths, batch_size=4)
    plain = answer_logits(model, examples)
    for (sender, receiver), values, changed in zip(paths, found.values, found.changed, strict=True):
        expected = naive(model, examples, other, sender, receiver)
        scale = max(1.0, float(expected.abs().max()) / 10)
        assert (values - expected).abs().max() < 2e-5 * scale, (sender, receiver)
        assert torch.equal(values[~changed], found.plain[~changed])
        assert torch.allclose(expected[~changed], plain[~changed], atol=1e-5 * scale)
    assert found.changed.any(1).float().mean() > 0.9


def test_padding_and_answers_of_several_tokens(make_model, kind, random_examples, left_padded):
    model = make_model(kind)
    for examples in (random_examples(padded=True), random_examples(k=2), left_padded):
        other, paths = elsewhere(examples), all_paths(model)[::5]
        found = path_grid(model, examples, Donor(model, other), paths)
        for (sender, receiver), values in zip(paths, found.values, strict=True):
            assert (values - naive(model, examples, other, sender, receiver)).abs().max() < 2e-5


def test_who_reads_whom(make_model, random_examples):
    model, examples = make_model(blocks=2, heads=2), random_examples()
    logits = Site("stream", 2)
    # The embedding reaches all 7 readers, each head of block 0 five, its MLP four, each head of block 1 two, its MLP one.
    assert len(all_paths(model)) == 7 + 2 * 5 + 4 + 2 * 2 + 1
    assert senders_of(model)[0] == EMBEDDING
    assert receivers_of(model)[-1] == logits
    assert connected(Site("head", 0, 1), Site("mlp", 0))
    assert not connected(Site("mlp", 0), Site("head", 0, 1))
    assert not connected(Site("head", 0, 0), Site("head", 0, 1))
    assert not connected(Site("mlp", 1), Site("mlp", 1))
    assert all(connected(sender, logits) for sender in senders_of(model))
    with pytest.raises(ValueError, match=r"head 0\.1 does not read mlp 0"):
        path_grid(model, examples, Donor(model, examples), [(Site("mlp", 0), Site("head", 0, 1))])


def test_direct_paths_to_the_logits_add_up_where_no_norm_stands_between(random_examples):
    """A compiled model has no final norm: the direct effects of all components sum to the whole change."""
    task = load_task({"kind": "rasp", "length": 6, "letters": 3})
    model = build(compiled_weights(task, "count_a"), 0.05)
    examples = task.capability("count_a").examples(6, 0)
    other = elsewhere(examples)
    logits = Site("stream", len(blocks(model)))
    found = path_grid(model, examples, Donor(model, other), [(s, logits) for s in senders_of(model)])
    with torch.no_grad():
        whole = answer_logits(model, other) - answer_logits(model, examples)
    assert torch.allclose((found.values - found.plain).sum(0), whole, atol=1e-4)


def lens_setting(model, random_examples):
    examples = random_examples(n=5)
    examples = replace(examples, answer_position=torch.full((5,), 8), answer=examples.tokens[:, 9:])
    other = elsewhere(examples)
    bridge = lens(model)
    return examples, other, bridge, *(bridge.run_with_cache(e.tokens)[1] for e in (other, examples))


def test_heads_are_what_transformer_lens_forks_give(make_model, random_examples):
    """Query, key and value of the receiving head are given the change together, through the forks before the norm."""
    model = make_model(blocks=2, heads=2)
    examples, other, bridge, clean, corrupted = lens_setting(model, random_examples)
    paths = [(Site("head", 0, s), Site("head", 1, r)) for s in (0, 1) for r in (0, 1)]
    found = path_grid(model, examples, Donor(model, other), paths).values[:, :, 0]
    bridge.set_use_split_qkv_input(True)
    for (sender, receiver), ours in zip(paths, found, strict=True):
        z = "blocks.0.attn.hook_z"
        change = (clean[z] - corrupted[z])[:, :, sender.head] @ bridge.blocks[0].attn.W_O[sender.head]

        def add(x, hook, change=change, head=receiver.head):
            x = x.clone()
            x[:, :, head] += change
            return x

        hooks = [(f"blocks.1.attn.hook_{part}_input", add) for part in "qkv"]
        theirs = bridge.run_with_hooks(examples.tokens, fwd_hooks=hooks)[:, 8]
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_get_act_patch_direct_path_where_values_alone_matter(make_model, random_examples):
    """Heads that attend everywhere alike read by their values only, and then the instrument's one part is our whole."""
    from transformer_lens.patching import get_act_patch_direct_path

    model = make_model(blocks=2, heads=2, seed=3)
    with torch.no_grad():
        for block in blocks(model):
            block.attn.c_attn.weight[:, :32] = 0
            block.attn.c_attn.bias[:32] = 0
    examples, other, bridge, clean, corrupted = lens_setting(model, random_examples)
    metric = lambda logits: (logits[:, 8, 3] - logits[:, 8, 4]).mean()  # noqa: E731
    read = lambda x, rows: x[:, 0, 3] - x[:, 0, 4]  # noqa: E731
    for head in (0, 1):
        theirs = get_act_patch_direct_path(bridge, examples.tokens, clean, corrupted, metric, 0, head, "v", verbose=False)
        paths = [(Site("head", 0, head), Site("head", 1, r)) for r in range(head_shape(model)[1])]
        ours = path_grid(model, examples, Donor(model, other), paths, read).values.mean(1)
        assert torch.allclose(ours, theirs[1], atol=1e-4)
        assert ours.std() > 1e-3
