"""Continuations against a loop that writes one prompt after the other without a cache; surprisal and KL against torch's own."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from workbench.errors import UserError
from workbench.models import divergence, generation
from workbench.models.build import build_model
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.generation import generate, surprisal, token_kl
from workbench.models.spec import ModelSpec
from workbench.protocols import compiled_weights, load_task

VOCAB, CONTEXT = 50, 64
SAMPLED = {"new_tokens": 14, "eos_id": None, "pad_id": 0}


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    """Whose every parameter is random and large, so that texts wander and positions matter."""
    made = build_model(ModelSpec(kind=request.param, blocks=2, heads=2, width=16), VOCAB, CONTEXT, 0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return made


def prompts(n=9, seed=0, most=30):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, most, (n,), generator=generator).tolist()
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def greedy(model, prompt, new):
    text = prompt
    for _ in range(new):
        text = torch.cat([text, model(input_ids=text[None], use_cache=False).logits[0, -1].argmax()[None]])
    return text[len(prompt) :]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_at_temperature_zero_it_writes_what_one_prompt_alone_without_a_cache_writes(model):
    texts = prompts()
    expected = [greedy(model, prompt, 16) for prompt in texts]
    assert len({tuple(text.tolist()) for text in expected}) == len(texts)  # or a mix-up of rows could not be seen
    for batch_size in (1, 4, 64):
        found = generate(model, texts, new_tokens=16, eos_id=None, pad_id=3, temperature=0, batch_size=batch_size)
        assert same(found, expected)


def test_grouped_heads_are_cached_alike(make_grouped):
    model, texts = make_grouped(), [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 6, 7, 8, 9])]
    found = generate(model, texts, new_tokens=7, eos_id=None, pad_id=0, temperature=0)
    assert same(found, [greedy(model, prompt, 7) for prompt in texts])


def test_a_sample_depends_on_the_seed_and_the_place_of_its_prompt_and_not_on_the_batch(model):
    texts = prompts(15)
    whole = generate(model, texts, **SAMPLED, seed=5)
    for batch_size in (1, 7):
        assert same(generate(model, texts, **SAMPLED, seed=5, batch_size=batch_size), whole)
    assert same(generate(model, texts[:4], **SAMPLED, seed=5), whole[:4])
    assert not any(torch.equal(a, b) for a, b in zip(whole, generate(model, texts, **SAMPLED, seed=6), strict=True))


def test_equal_prompts_are_continued_differently(model):
    found = generate(model, [torch.tensor([1, 2])] * 8, **SAMPLED)
    assert len({tuple(text.tolist()) for text in found}) == 8


def test_the_global_random_state_is_neither_used_nor_moved(model):
    texts = prompts(3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(model, texts, **SAMPLED)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert same(generate(model, texts, **SAMPLED), first)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 5), (1.0, VOCAB + 1)])
def test_samples_follow_the_models_distribution(model, temperature, top_k):
    n, prompt = 3000, torch.tensor([4, 8, 15])
    found = generate(
        model, [prompt] * n, new_tokens=1, eos_id=None, pad_id=0, temperature=temperature, top_k=top_k, batch_size=n
    )
    counts = torch.bincount(torch.cat(found), minlength=VOCAB).double()
    with torch.no_grad():
        logits = model(input_ids=prompt[None]).logits[0, -1].double() / temperature
    kept = logits.argsort(descending=True)[:top_k]
    expected = n * logits[kept].softmax(0)
    assert counts[kept].sum() == n  # nothing else was drawn
    seen = expected > 5
    statistic = ((counts[kept] - expected)[seen] ** 2 / expected[seen]).sum() + (counts[kept] - expected)[
        ~seen
    ].sum() ** 2 / max(1e-9, float(expected[~seen].sum()))
    freedom = int(seen.sum()) - (0 if bool((~seen).any()) else 1)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_the_best_of_one_is_the_most_likely(model):
    texts = prompts(5)
    assert same(generate(model, texts, **SAMPLED, top_k=1), generate(model, texts, **SAMPLED, temperature=0))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_text_ends_before_its_first_end_token_and_others_go_on_as_they_would(model, temperature):
    texts = prompts(15)
    endless = generate(model, texts, **SAMPLED, temperature=temperature)
    ids = torch.cat(endless)
    for eos in (int(ids.mode().values), int(endless[0][0])):
        expected = [text[: (text == eos).nonzero()[0, 0]] if (text == eos).any() else text for text in endless]
        ended = sum(len(text) < 14 for text in expected)
        assert 0 < ended < 15
        for batch_size in (7, 64):
            settings = {**SAMPLED, "eos_id": eos, "temperature": temperature, "batch_size": batch_size}
            assert same(generate(model, texts, **settings), expected)
    alone = generate(model, texts[:1], **{**SAMPLED, "eos_id": int(endless[0][0]), "temperature": temperature})
    assert alone[0].shape == (0,)


def test_progress_goes_up_by_one_jumps_over_what_need_not_run_and_ends_at_the_total(model):
    told = []
    generate(model, prompts(5), **SAMPLED, batch_size=3, on_step=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told if done] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {28}
    assert {done for done, _ in told} == set(range(1, 29))
    told.clear()
    text = torch.tensor([1, 2])
    first = int(generate(model, [text], **SAMPLED)[0][0])
    generate(model, [text], **{**SAMPLED, "eos_id": first}, on_step=lambda done, total: told.append((done, total)))
    assert told == [(14, 14)]


def test_the_model_is_as_before(model):
    model.train()
    frozen = next(iter(model.base_model.children())).eval()
    with check_unchanged(model):
        generate(model, prompts(3), **SAMPLED)
        surprisal(model, torch.ones(2, 4, dtype=torch.long))
    assert model.training
    assert not frozen.training
    with pytest.raises(UserError):
        generate(model, [torch.tensor([], dtype=torch.long)], **SAMPLED)
    assert model.training


def test_dropout_is_off():
    model = build_model(ModelSpec(blocks=1, heads=2, width=16), VOCAB, CONTEXT, 0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    texts, rows = prompts(3), torch.arange(40).view(4, 10)
    expected = generate(model, texts, **SAMPLED), surprisal(model, rows)
    model.train()
    assert same(generate(model, texts, **SAMPLED), expected[0])
    assert torch.equal(surprisal(model, rows), expected[1])
    assert not token_kl(model, model, rows).any()


@pytest.mark.parametrize(
    ("texts", "changed", "sentence"),
    [
        ([[1, 2], []], {}, "prompt 1 is empty"),
        ([[1] * 51], {}, "prompt 0 has 51 tokens, and 14 new ones go beyond the model's context of 64; write at most 13"),
        ([[1], [2, 50]], {}, "prompt 1 has the token id 50, outside the model's vocabulary of 50"),
        ([[-1]], {}, "token id -1"),
        ([[1]], {"temperature": -0.5}, "the temperature is -0.5"),
        ([[1]], {"temperature": math.nan}, "the temperature is nan"),
        ([[1]], {"temperature": math.inf}, "the temperature is inf"),
        ([[1]], {"top_k": 0}, "top_k is 0"),
        ([[1]], {"new_tokens": 0}, "new_tokens is 0"),
        ([[1]], {"batch_size": 0}, "batch_size is 0"),
        ([[1]], {"pad_id": 50}, "the padding id 50"),
    ],
)
def test_what_the_model_cannot_take_is_refused_in_a_sentence(model, texts, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(model, [torch.tensor(text, dtype=torch.long) for text in texts], **{**SAMPLED, **changed})


def test_the_whole_context_can_be_used(model):
    assert len(generate(model, [torch.ones(50, dtype=torch.long)], **SAMPLED)[0]) == 14
    assert generate(model, [], **SAMPLED) == []


def test_a_model_that_sees_the_whole_text_continues_none():
    task = load_task({"kind": "rasp", "length": 6, "letters": 3})
    with pytest.raises(UserError, match="use a causal model"):
        generate(build(compiled_weights(task, "count_a"), 0.0), [torch.tensor([1])], new_tokens=1, eos_id=None, pad_id=0)


MASKS = {
    "none": lambda t: None,
    "right": lambda t: torch.arange(t) < torch.tensor([t, 4, 2, 1, 9])[:, None],
    "left": lambda t: torch.arange(t) >= torch.tensor([0, 4, t - 2, t - 1, 1])[:, None],
    "both": lambda t: (torch.arange(t) >= torch.tensor([0, 4, 1, 2, 3])[:, None]) & (torch.arange(t) < t - 2),
}


def alone(model, tokens, mask):
    """Log-probabilities of every text by itself, without padding: `(row, columns, log p [length, vocab])`."""
    for row, ids in enumerate(tokens):
        columns = torch.arange(len(ids)) if mask is None else mask[row].nonzero()[:, 0]
        with torch.no_grad():
            found = model(input_ids=ids[columns][None]).logits[0].double().log_softmax(-1)
        yield row, columns, found


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("floats", [None, 2 * VOCAB * 11])
def test_surprisal_is_minus_log_p_of_each_real_token_but_the_first(model, padding, floats, monkeypatch):
    if floats:
        monkeypatch.setattr(generation, "FLOATS", floats)  # two texts at a time
    tokens = torch.randint(0, VOCAB, (5, 11), generator=torch.Generator().manual_seed(3))
    mask = MASKS[padding](11)
    expected = torch.zeros(5, 10, dtype=torch.float64)
    for row, columns, logp in alone(model, tokens, mask):
        expected[row, columns[:-1]] = -logp[torch.arange(len(columns) - 1), tokens[row, columns[1:]]]
    found = surprisal(model, tokens, mask)
    assert found.shape == (5, 10)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert torch.equal(found == 0, expected == 0)


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("floats", [None, 2 * VOCAB * 11])
def test_token_kl_is_the_divergence_of_p_from_q_at_each_place_that_predicts_a_real_token(model, padding, floats, monkeypatch):
    if floats:
        monkeypatch.setattr(divergence, "FLOATS", floats)
    other = build_model(ModelSpec(blocks=1, heads=2, width=16), VOCAB, CONTEXT, 1)
    tokens = torch.randint(0, VOCAB, (5, 11), generator=torch.Generator().manual_seed(3))
    mask = MASKS[padding](11)
    expected = torch.zeros(5, 10, dtype=torch.float64)
    for (row, columns, p), (_, _, q) in zip(alone(model, tokens, mask), alone(other, tokens, mask), strict=True):
        expected[row, columns[:-1]] = kl_divergence(Categorical(logits=p), Categorical(logits=q))[:-1]
    found = token_kl(model, other, tokens, mask)
    assert found.shape == (5, 10)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert torch.equal(found == 0, expected == 0)
    assert not torch.allclose(token_kl(other, model, tokens, mask), found, atol=1e-2)


def test_logits_are_never_held_for_all_texts(model, monkeypatch):
    for module in (generation, divergence):
        monkeypatch.setattr(module, "FLOATS", 3 * VOCAB * 11)
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    tokens = torch.ones(40, 11, dtype=torch.long)
    surprisal(model, tokens)
    token_kl(model, model, tokens)
    assert max(sizes) <= 3 * VOCAB * 11
    assert sum(sizes) == 3 * 40 * 10 * VOCAB


def test_texts_without_a_next_token_are_refused(model):
    with pytest.raises(UserError, match="there are 3 texts of 1 tokens"):
        surprisal(model, torch.ones(3, 1, dtype=torch.long))
