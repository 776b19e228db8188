"""Reading out: after the last block it is the model; parts sum to its logits; TransformerLens' instruments say the same."""

from dataclasses import replace

import pytest
import torch
from transformer_lens.tools.analysis import direct_logit_attribution, logit_lens

from workbench.models.anatomy import blocks, final_norm
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import answer_logits
from workbench.models.lens import lens
from workbench.models.readout import Part, attribute, read_out
from workbench.models.sites import EMBEDDING, Site, record
from workbench.protocols import compiled_weights, load_task

ARCHITECTURES = ["gpt2", "llama", "grouped", "compiled"]
LAST = 7


@pytest.fixture(params=ARCHITECTURES)
def subject(request, make_model, make_grouped, random_examples):
    """`(model, examples)` of every architecture, answers at ragged positions."""
    if request.param == "compiled":
        task = load_task({"kind": "rasp", "length": 6, "letters": 3})
        return build(compiled_weights(task, "count_a"), 0.05), task.capability("count_a").examples(6, 0)
    model = make_grouped() if request.param == "grouped" else make_model(request.param, heads=2)
    return model, random_examples()


@pytest.fixture
def same_place(random_examples):
    """Examples that all answer at one position, as TransformerLens wants them."""
    examples = random_examples()
    at = torch.full((len(examples),), LAST)
    return replace(examples, answer_position=at, answer=examples.tokens[:, LAST + 1 : LAST + 2])


def stream(model, examples, point):
    return record(model, examples, [Site("stream", point)], examples.answer_position[:, None])[Site("stream", point)][:, 0]


def rivals(examples, seed=5):
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, len(examples.candidates), (len(examples), 1), generator=generator)
    place = (examples.candidates == examples.answer[:, :1]).int().argmax(1, keepdim=True)
    return examples.candidates[(place + shift) % len(examples.candidates)]


def test_after_the_last_block_it_is_the_model(subject):
    model, examples = subject
    with torch.no_grad():
        found = read_out(model, stream(model, examples, len(blocks(model))))
        assert torch.allclose(found, answer_logits(model, examples)[:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_point_is_the_logit_lens_of_transformer_lens(make_model, random_examples, kind):
    model, examples = make_model(kind), random_examples()
    theirs = logit_lens(
        lens(model), examples.tokens, positions=None, incl_mid=True, vocab=list(range(20)), return_type="logits"
    )
    names = {
        "0_pre": Site("stream", 0),
        "0_mid": Site("middle", 0),
        "1_pre": Site("stream", 1),
        "final_post": Site("stream", 2),
    }
    at = torch.arange(9).expand(6, -1)
    states = record(model, examples, list(names.values()), at)
    with torch.no_grad():
        for name, site in names.items():
            assert torch.allclose(read_out(model, states[site]), theirs.values[theirs.labels.index(name)][:, :9], atol=1e-4), (
                name
            )


def test_parts_sum_to_the_logit_difference(subject):
    model, examples = subject
    against = rivals(examples)
    with torch.no_grad(), check_unchanged(model):
        found = attribute(model, examples, examples.answer[:, :1], against, batch_size=4)
        logits = answer_logits(model, examples)[:, 0]
    own = logits.gather(1, examples.answer[:, :1]) - logits.gather(1, against)
    assert torch.allclose(found.difference, own[:, 0].double(), atol=1e-5)
    assert torch.allclose(found.values.sum(1), found.difference, atol=1e-4)
    assert len(found.parts) == found.values.shape[1] == len(set(found.parts))


def test_the_sum_is_exact_but_for_rounding(make_model, make_grouped, random_examples):
    """In double precision; the norm of a Llama works in single precision all the same."""
    for model, error in ((make_model("gpt2", dtype=torch.float64), 1e-12), (make_grouped(torch.float64), 1e-6)):
        examples = random_examples()
        found = attribute(model, examples, examples.answer, rivals(examples))
        assert torch.allclose(found.values.sum(1), found.difference, rtol=0, atol=error)


def test_a_part_is_what_the_frozen_norm_makes_of_it(make_model, random_examples):
    """Naive twin: take a component out of the stream, put it through the norm with the scale of the whole, and compare."""
    for kind in ("gpt2", "llama"):
        model, examples = make_model(kind, dtype=torch.float64), random_examples()
        against = rivals(examples)
        found = attribute(model, examples, examples.answer, against)
        whole, norm = stream(model, examples, 2), final_norm(model)
        sites = {Part("embedding"): EMBEDDING, Part("mlp", 0): Site("mlp", 0), Part("mlp", 1): Site("mlp", 1)}
        states = record(model, examples, list(sites.values()), examples.answer_position[:, None])
        for part, site in sites.items():
            for i in range(len(examples)):
                x, c = whole[i], states[site][i, 0]
                if kind == "gpt2":
                    scaled = (c - c.mean()) / (x.var(correction=0) + norm.eps).sqrt() * norm.weight
                else:
                    scaled = c / (x.square().mean() + norm.variance_epsilon).sqrt() * norm.weight
                head = model.get_output_embeddings().weight
                expected = (head[examples.answer[i, 0]] - head[against[i, 0]]) @ scaled
                assert found.values[i, found.parts.index(part)].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("unit", ["component", "head"])
def test_the_parts_are_those_of_transformer_lens(make_model, same_place, kind, unit):
    model, examples = make_model(kind), same_place
    against = rivals(examples)
    found = attribute(model, examples, examples.answer, against)
    ours = {str(part): found.values[:, i].float() for i, part in enumerate(found.parts)}
    bridge = lens(model)
    bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)  # ours belong to the head that has them
    right, wrong = examples.answer[:, 0], against[:, 0]
    theirs = direct_logit_attribution(bridge, examples.tokens[:, : LAST + 1], right, wrong, unit=unit)
    named = dict(zip(theirs.labels, theirs.attribution, strict=True))
    for b in (0, 1):
        heads = [ours[f"head {b}.{h}"] for h in (0, 1)]
        if unit == "head":
            assert all(torch.allclose(x, named[f"L{b}H{h}"], atol=1e-4) for h, x in enumerate(heads))
        else:
            assert torch.allclose(sum(heads) + ours.get(f"attention bias {b}", 0), named[f"{b}_attn_out"], atol=1e-4)
            assert torch.allclose(ours[f"mlp {b}"], named[f"{b}_mlp_out"], atol=1e-4)
    if unit == "component":
        embedding = named["embed"] + named.get("pos_embed", 0)
        assert torch.allclose(ours["embedding"], embedding, atol=1e-4)


def test_several_tokens_are_averaged(make_model, random_examples):
    model, examples = make_model(), random_examples()
    others = torch.stack([rivals(examples, seed)[:, 0] for seed in range(3)], dim=1)
    joint = attribute(model, examples, examples.answer, others)
    each = [attribute(model, examples, examples.answer, others[:, i : i + 1]).values for i in range(3)]
    assert torch.allclose(joint.values, torch.stack(each).mean(0), atol=1e-12)


def test_only_the_terms_that_a_model_has_are_named(make_model, make_grouped):
    """GPT-2 has biases in attention and final norm, a plain Llama none, ours with biases one in attention."""
    from workbench.models.readout import _parts

    kinds = {
        name: {p.kind for p in _parts(m)}
        for name, m in (("gpt2", make_model()), ("llama", make_model("llama")), ("grouped", make_grouped()))
    }
    plain = {"embedding", "head", "mlp"}
    assert kinds == {
        "gpt2": plain | {"attention bias", "final norm bias"},
        "llama": plain,
        "grouped": plain | {"attention bias"},
    }
    assert [str(p) for p in _parts(make_model("llama"))] == [
        "embedding",
        "head 0.0",
        "head 0.1",
        "mlp 0",
        "head 1.0",
        "head 1.1",
        "mlp 1",
    ]


def test_parts_that_miss_the_difference_are_an_error(make_model, random_examples, monkeypatch):
    """For instance a head that scales its logits."""
    from workbench.models import readout

    model, examples = make_model(), random_examples()
    monkeypatch.setattr(readout, "read_out", lambda m, x: 2 * read_out(m, x))
    with pytest.raises(RuntimeError, match="miss its logit difference by"):
        attribute(model, examples, examples.answer, rivals(examples))


def test_padding_on_the_left_changes_nothing(make_model, left_padded):
    model = make_model()
    found = attribute(model, left_padded, left_padded.answer, rivals(left_padded))
    for i in range(len(left_padded)):
        pad = int((~left_padded.attention_mask[i]).sum())
        row = left_padded[i : i + 1]
        bare = replace(
            row,
            tokens=row.tokens[:, pad:],
            loss_mask=row.loss_mask[:, pad:],
            attention_mask=None,
            answer_position=row.answer_position - pad,
        )
        alone = attribute(model, bare, bare.answer, rivals(left_padded)[i : i + 1])
        assert torch.allclose(alone.values[0], found.values[i], atol=1e-4)
