"""Every score against a naive twin in float64: single examples, single weights, single removals.

Llama's norm rounds to single precision whatever it is given: there other orders of summing agree to that only.
"""

import copy
from dataclasses import replace

import pytest
import torch

from workbench.errors import UserError
from workbench.models.anatomy import anatomy, blocks, head_mask, head_shape, matrix, neuron_mask, neuron_shape
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import accuracy, hidden_states, nll
from workbench.models.scores import SCORES, Request, order_of, rank, score_units, unit_scores
from workbench.models.units import units_of

WORDS = ("neurons", "heads", "rows", "weights")


@pytest.fixture(scope="module")
def ask(make_model, random_examples):
    """`(kind, units, **changes) -> Request` of a small model in float64 and seven examples."""

    def make(kind="gpt2", units="neurons", padded=False, **changes):
        model = make_model(kind, width=8, mlp_width=6, dtype=torch.float64)
        return Request(model, units_of(model, units), random_examples(n=7, padded=padded), **changes)

    return make


def own_entries(request, number):
    """Module and boolean mask `[out, in]` of a unit's own weights, by its coordinates."""
    row = request.units.table(torch.tensor([number])).iloc[0]
    block, sites = blocks(request.model)[int(row["block"])], anatomy(request.model)
    path = row.get("matrix", sites.mlp_out if request.units.word == "neurons" else sites.attention_out)
    module = block.get_submodule(path)
    mask = torch.zeros(matrix(module).shape, dtype=torch.bool)
    if request.units.word == "neurons":
        mask[:, row["neuron"]] = True
    elif request.units.word == "heads":
        mask[:, 4 * row["head"] : 4 * row["head"] + 4] = True
    elif request.units.word == "rows":
        mask[row["row"]] = True
    else:
        mask[row["row"], row["column"]] = True
    return module, mask


def slopes(model, module, examples):
    slope = torch.autograd.grad(nll(model, examples).mean(), module.weight)[0]
    return slope if isinstance(module, torch.nn.Linear) else slope.T


def by_unit(request, entry, numbers=None):
    """Naive: `entry(module) [out, in]` summed over each unit's own weights, unit by unit."""
    numbers = range(len(request.units)) if numbers is None else numbers
    out = []
    for number in numbers:
        module, mask = own_entries(request, number)
        out.append(entry(module)[mask].sum())
    return torch.stack(out).detach()


def some(request):
    """All units, or a dozen where there are many."""
    step = max(1, len(request.units) // 12)
    return list(range(0, len(request.units), step))


def check(request, name, expected):
    with check_unchanged(request.model):
        found = score_units(name, request)
    assert found.shape == (len(request.units),)
    exact = {"rtol": 1e-8, "atol": 1e-13} if type(request.model).__name__ == "GPT2LMHeadModel" else {"rtol": 1e-5, "atol": 1e-6}
    assert torch.allclose(found[some(request)].double(), expected, **exact)
    assert found.unique().numel() > 1
    assert all(p.grad is None for p in request.model.parameters())


@pytest.mark.parametrize("word", WORDS)
def test_signed_and_absolute_taylor(ask, kind, word):
    r = ask(kind, word)
    products = {}

    def entry(module):
        if module not in products:
            products[module] = matrix(module) * slopes(r.model, module, r.examples)
        return products[module]

    check(r, "signed_taylor", by_unit(r, entry, some(r)))
    check(r, "abs_taylor", by_unit(r, lambda m: entry(m).abs(), some(r)))


@pytest.mark.parametrize("word", ["neurons", "heads"])
def test_the_signed_score_is_the_slope_of_the_loss_in_the_mask(ask, kind, word):
    """Central differences of a mask on one unit: the sign says whether removing lowers the loss."""
    r = ask(kind, word)
    scores = unit_scores(r.model, r.examples, word=word).flatten()
    masked, shape = (neuron_mask, neuron_shape) if word == "neurons" else (head_mask, head_shape)

    def loss(number, value):
        mask = torch.ones(shape(r.model), dtype=torch.float64)
        mask.view(-1)[number] = value
        with torch.no_grad(), masked(r.model, mask):
            return nll(r.model, r.examples).mean().item()

    step, close = (1e-5, 1e-6) if kind == "gpt2" else (1e-2, 1e-2)
    for number in range(4):
        slope = (loss(number, 1 + step) - loss(number, 1 - step)) / (2 * step)
        assert scores[number].item() == pytest.approx(slope, rel=close, abs=close * 1e-3)


def test_input_taylor_is_the_input_row_alone(ask, kind):
    r = ask(kind)
    expected = []
    for block in blocks(r.model):
        rows = 0
        for path in anatomy(r.model).mlp_in:
            module = block.get_submodule(path)
            rows = rows + (matrix(module) * slopes(r.model, module, r.examples)).sum(1)
        expected.append(rows)
    check(r, "input_taylor", torch.cat(expected).detach())


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("padded", [False, True])
def test_snip_is_the_mean_over_single_examples(ask, word, padded):
    r = ask(units=word, padded=padded)
    sizes = {}

    def entry(module):
        if module not in sizes:
            one = [slopes(r.model, module, r.examples[i : i + 1]).abs() for i in range(len(r.examples))]
            sizes[module] = matrix(module).abs() * torch.stack(one).mean(0)
        return sizes[module]

    check(r, "snip", by_unit(r, entry, some(r)))


@pytest.mark.parametrize("word", WORDS)
def test_signed_absolute_and_single_example_sizes_are_ordered(ask, kind, word):
    r = ask(kind, word)
    signed, absolute, snip = (score_units(name, r).double() for name in ("signed_taylor", "abs_taylor", "snip"))
    assert (signed.abs() <= absolute + 1e-12).all()
    assert (absolute <= snip + 1e-12).all()
    one = Request(r.model, r.units, r.examples[:1])
    assert torch.allclose(score_units("abs_taylor", one), score_units("snip", one), rtol=1e-9, atol=1e-14)


@torch.no_grad()
def seen_inputs(request, module):
    """What a module reads at every token through which it can move the answer, example by example `[tokens, in]`.

    Found by trying: what it writes is pushed at one token at a time, the whole sequence being shown. The query of the first
    token has nothing to choose from and moves nothing; before the last block it counts as the others do.
    """
    early = all(module is not other for other in blocks(request.model)[-1].modules())
    rows = []
    for i in range(len(request.examples)):
        one, t = request.examples[i : i + 1], request.examples.tokens.shape[1]
        each = request.examples[torch.full((t + 1,), i)]  # the last one is not pushed
        caught = []

        def push(_, given, output, caught=caught, t=t):
            caught.append(given[0])
            pushed = output.clone()
            pushed[torch.arange(t), torch.arange(t)] += torch.linspace(-1, 2, output.shape[-1], dtype=output.dtype)
            return pushed

        handle = module.register_forward_hook(push)
        answer = hidden_states(request.model, each, t)[:, int(one.answer_position[0])]
        handle.remove()
        moved = (answer[:t] - answer[t]).abs().amax(1) > 1e-6
        first = 0 if one.attention_mask is None else int(one.attention_mask[0].int().argmax())
        moved[first] |= early
        rows.append(caught[0][t][moved])
    return torch.cat(rows)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.slow
def test_wanda_is_weight_times_norm_of_the_input(ask, left_padded, kind, word, padded):
    r = replace(ask(kind, word), examples=left_padded) if padded else ask(kind, word)
    norms = {m: seen_inputs(r, m).norm(dim=0) for m in dict.fromkeys(r.units.modules(r.model))}
    check(r, "wanda", by_unit(r, lambda m: matrix(m).abs() * norms[m], some(r)))


@pytest.mark.parametrize("word", ["neurons", "heads"])
def test_activation_is_a_mean_over_the_tokens_that_the_answer_sees(ask, kind, word):
    r = ask(kind, word)
    means = [
        seen_inputs(r, m).abs().mean(0).view(p.count, -1).mean(1)
        for p, m in zip(r.units.parts, r.units.modules(r.model), strict=True)
    ]
    expected = torch.cat(means)[some(r)]
    check(r, "activation", expected)


def test_the_answer_sees_itself_alone_in_the_last_block(ask, kind):
    """What the twin finds: of the last block only keys and values at other tokens; of the first, all up to the answer."""
    r = ask(kind, "rows")
    seen = {
        (part.block, part.path): len(seen_inputs(r, module))
        for part, module in zip(r.units.parts, r.units.modules(r.model), strict=True)
    }
    sites, up_to_answer = anatomy(r.model), int((r.examples.answer_position + 1).sum())
    wide = {(1, path) for path in (sites.attention_in if kind == "gpt2" else sites.attention_in[1:])}
    assert {at for at, tokens in seen.items() if tokens == up_to_answer} == {at for at in seen if at[0] == 0} | wide
    assert {tokens for at, tokens in seen.items() if at[0] == 1 and at not in wide} == {len(r.examples)}


def whole(request, number, of):
    """Sum of `of(name, tensor)` over the own weights and, for neurons, input rows and biases."""
    module, mask = own_entries(request, number)
    names = {id(p): name for name, p in request.model.named_parameters()}

    def entries(m):
        found = of(names[id(m.weight)], m.weight)
        return found if isinstance(m, torch.nn.Linear) else found.T

    total = entries(module)[mask].sum()
    if request.units.word == "neurons":
        block, within = divmod(number, 6)
        for path in anatomy(request.model).mlp_in:
            inner = blocks(request.model)[block].get_submodule(path)
            total = total + entries(inner)[within].sum()
            if inner.bias is not None:
                total = total + of(names[id(inner.bias)], inner.bias)[within]
    return total.detach()


@pytest.mark.parametrize("word", WORDS)
def test_magnitude_and_difference(ask, kind, make_model, word):
    base = make_model(kind, seed=5, width=8, mlp_width=6, dtype=torch.float64)
    r = ask(kind, word, base=base)
    other = dict(base.named_parameters())
    check(r, "magnitude", torch.stack([whole(r, i, lambda _, p: p.abs()) for i in some(r)]))
    check(r, "difference", torch.stack([whole(r, i, lambda name, p: (p - other[name]).abs()) for i in some(r)]))
    same = Request(r.model, r.units, r.examples, base=copy.deepcopy(r.model))
    assert not score_units("difference", same).any()


def test_difference_needs_a_base(ask):
    with pytest.raises(UserError, match="needs the model before fine-tuning"):
        score_units("difference", ask())


def test_obd_is_half_the_curvature_times_the_square(ask):
    r = ask(probes=None, units="weights:mlp_out")
    module = blocks(r.model)[1].mlp.c_proj
    found = score_units("obd", r).view(2, 8, 6)[1]  # [out, in]
    for out, neuron in ((0, 0), (7, 5), (3, 2)):
        step, values = 1e-4, []
        for sign in (1, 0, -1):
            with torch.no_grad():
                module.weight[neuron, out] += sign * step
                values.append(nll(r.model, r.examples).mean().item())
                module.weight[neuron, out] -= sign * step
        curvature = (values[0] - 2 * values[1] + values[2]) / step**2
        weight = module.weight[neuron, out].item()
        assert found[out, neuron].item() == pytest.approx(0.5 * curvature * weight**2, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("word", ["neurons", "heads"])
def test_obd_of_a_unit_is_the_sum_over_its_weights(ask, word):
    r = ask(units=word, probes=None)
    single = ask(units={"neurons": "weights:mlp_out", "heads": "weights:attention_out"}[word], probes=None)
    weights = score_units("obd", single).view(2, 8, -1)
    expected = weights.view(2, 8, len(r.units) // 2, -1).sum((1, 3)).flatten()
    assert torch.allclose(score_units("obd", r), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("word", ["neurons", "heads"])
def test_leaving_one_out_is_turned_so_that_harm_is_positive(ask, kind, word):
    r = ask(kind, word)
    with torch.no_grad():
        plain = nll(r.model, r.examples).mean(), accuracy(r.model, r.examples).mean()
        loss, right = [], []
        for number in range(len(r.units)):
            with r.units.removed(r.model, torch.tensor([number])):
                loss.append(plain[0] - nll(r.model, r.examples).mean())
                right.append(accuracy(r.model, r.examples).mean() - plain[1])
    expected = torch.stack(loss)
    assert torch.allclose(score_units("leave_one_out", r).double(), expected, atol=1e-12 if kind == "gpt2" else 1e-6)
    assert torch.allclose(score_units("leave_one_out_accuracy", r).double(), torch.stack(right).double(), atol=1e-6)


def test_set_difference_moves_what_others_need_to_the_end(ask, random_examples):
    r = ask(units="rows", protect=[lambda: random_examples(n=5, seed=3), lambda: random_examples(n=5, seed=4)])
    order = order_of("set_difference", score_units("set_difference", r)).tolist()
    plain = order_of("signed_taylor", score_units("signed_taylor", r)).tolist()
    needed = set()
    for seed in (3, 4):
        snip = score_units("snip", Request(r.model, r.units, random_examples(n=5, seed=seed)))
        needed |= set(snip.argsort(descending=True)[: round(0.1 * len(plain))].tolist())
    assert 0.1 * len(plain) <= len(needed) <= 0.2 * len(plain) + 1
    assert order == [u for u in plain if u not in needed] + [u for u in plain if u in needed]
    assert order_of("set_difference", score_units("set_difference", ask(units="rows"))).tolist() == plain


def test_random_depends_on_the_seed_alone(ask):
    first, second = (order_of("random", score_units("random", ask(seed=seed))) for seed in (0, 1))
    assert sorted(first.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()
    assert first.tolist() == order_of("random", score_units("random", ask(kind="llama", seed=0))).tolist()


def test_which_end_goes_first():
    scores = torch.tensor([0.5, -9.0, 0.5, 2.0])
    assert rank(scores).tolist() == [3, 0, 2, 1]
    for name, score in SCORES.items():
        expected = [3, 0, 2, 1] if score.largest_first else [1, 0, 2, 3]
        assert order_of(name, scores).tolist() == expected
        assert score.why
    harmful = {
        "signed_taylor",
        "input_taylor",
        "leave_one_out",
        "leave_one_out_accuracy",
        "set_difference",
        "difference",
        "random",
    }
    assert {name for name, score in SCORES.items() if score.largest_first} == harmful


@pytest.mark.parametrize(
    ("name", "units", "message"),
    [
        ("leave_one_out", "rows:mlp_in", "score 'leave_one_out' is not defined for rows:mlp_in; choose one of signed_taylor"),
        ("input_taylor", "heads", "not defined for heads"),
        ("signed", "neurons", "there is no score 'signed'"),
    ],
)
def test_scores_that_are_not_there_are_refused(ask, name, units, message):
    with pytest.raises(UserError, match=message):
        score_units(name, ask(units=units))
