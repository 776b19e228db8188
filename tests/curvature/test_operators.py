"""Products with Hessian, Gauss-Newton and Fisher matrices: closed forms, other ways to differentiate, and a recorded model."""

from __future__ import annotations

import gc
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from workbench.curvature.maps import SymmetricMap, asymmetry, random_columns
from workbench.curvature.objective import Objective, Part, of_model
from workbench.curvature.operators import empirical_fisher, fisher, gauss_newton, head_places, hessian, residual
from workbench.models.build import build_model
from workbench.models.spec import ModelSpec

DATA = Path(__file__).parent / "data" / "gpt2_w16_seed7.npz"
OPERATORS = pytest.mark.parametrize("operator", [hessian, gauss_newton, empirical_fisher])


class Normed(nn.Module):
    """A multilayer perceptron with an affine layer norm, where nested reverse mode goes wrong."""

    def __init__(self, outputs=3, bias=True):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, outputs, bias=bias)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x))))


class Encoder(nn.Module):
    """torch's own attention, as it comes."""

    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        if kind == "layer":
            self.mix = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True, activation="gelu")
        else:
            self.mix = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens):
        x = self.embed(tokens)
        mixed = self.mix(x) if isinstance(self.mix, nn.TransformerEncoderLayer) else self.mix(x, x, x, need_weights=False)[0]
        return self.head(mixed).flatten(0, 1)


def seeded(make, seed=0, spread=0.3):
    """A module in double precision whose weights, norms too, are away from their symmetric starting values."""
    torch.manual_seed(seed)
    module = make().double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(spread * torch.randn_like(p))
    return module


def classes(rows, features, outputs, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, dtype=torch.float64, generator=generator)
    return Part(x, torch.randint(0, outputs, (rows,), generator=generator))


@pytest.fixture
def normed() -> Objective:
    return Objective(seeded(Normed), [classes(12, 4, 3)])


def language(kind, **changes):
    return build_model(ModelSpec(kind=kind, blocks=2, heads=2, width=8, mlp_width=12), 20, 12, 0, **changes)


def by_jvp(loss: Objective, v):
    """H v as the forward derivative of the gradient."""
    (part,) = loss.parts
    at = {name: p.detach().clone() for name, p in loss.parameters.items()}
    direction = dict(zip(at, loss.split(v), strict=True))
    with sdpa_kernel(SDPBackend.MATH):
        found = jvp(grad(lambda p: loss.total(functional_call(loss.module, p, (part.inputs,)), part)), (at,), (direction,))[1]
    return loss.flat([found[name] for name in at])


def by_differences(loss: Objective, v, step=1e-5):
    """H v as a central difference of the gradient along v / ||v||."""
    at, size = loss.vector(), v.norm()
    ends = []
    for sign in (1, -1):
        loss.put(at + sign * step * v / size)
        ends.append(loss.gradient())
    loss.put(at)
    return (ends[0] - ends[1]) / (2 * step) * size


def far(a, b):
    return float((a - b).norm() / b.norm())


def losses():
    tokens = torch.randint(0, 7, (5, 4), generator=torch.Generator().manual_seed(3))
    yield "normed", Objective(seeded(Normed), [classes(12, 4, 3)])
    for kind in ("layer", "attention"):
        encoder = seeded(lambda kind=kind: Encoder(kind)).train()
        yield kind, Objective(encoder, [Part(tokens, tokens.flatten())])


def language_losses(random_examples):
    for kind in ("gpt2", "llama"):
        for on in ("answers", "text"):
            examples = random_examples(n=6, t=10, everywhere=on == "text")
            yield f"{kind} {on}", of_model(language(kind), examples, on, dtype=torch.float64)


# --- against other ways to differentiate


def test_products_are_those_of_forward_over_reverse_and_of_differences(random_examples):
    for name, loss in (*losses(), *language_losses(random_examples)):
        (v,) = random_columns(loss.size, 1, 0, like=hessian(loss)).T
        product = hessian(loss) @ v
        assert far(product, by_jvp(loss, v)) < 1e-12, name
        assert far(by_differences(loss, v), product) < 1e-7, name


def test_matrices_are_symmetric_whatever_attention_the_model_was_made_with(random_examples):
    for name, loss in (*losses(), *language_losses(random_examples)):
        for operator in (hessian, gauss_newton, empirical_fisher, residual):
            assert asymmetry(operator(loss)) < 1e-11, (name, operator.__name__)


def test_the_defect_that_is_avoided_would_be_seen(normed):
    """Forward over nested reverse mode is what goes wrong at affine layer norms in torch 2.13; should it be mended, fine."""
    (part,) = normed.parts
    at = {name: p.detach().clone() for name, p in normed.parameters.items()}

    def product(v):
        outer = torch.func.jacrev(lambda p: normed.total(functional_call(normed.module, p, (part.inputs,)), part))
        found = jvp(outer, (at,), (dict(zip(at, normed.split(v), strict=True)),))[1]
        return normed.flat([found[name] for name in at])

    wrong = SymmetricMap(normed.size, lambda v: torch.stack([product(c) for c in v.T], 1))
    if far(wrong.dense(), hessian(normed).dense()) > 1e-6:
        assert asymmetry(wrong) > 1e-4


def test_columns_together_are_columns_one_by_one(normed):
    for operator in (hessian, gauss_newton, empirical_fisher, residual):
        of = operator(normed)
        v = random_columns(normed.size, 40, 1, like=of)
        together = of @ v
        for i in (0, 31, 32, 39):
            torch.testing.assert_close(together[:, i], of @ v[:, i], rtol=1e-11, atol=1e-13)


# --- closed forms


def test_linear_regression():
    module, part = seeded(lambda: nn.Linear(5, 1, bias=False)), classes(30, 5, 2)
    loss = Objective(module, [Part(part.inputs, part.targets[:, None].double())], "squared_error")
    expected = 2 / 30 * part.inputs.T @ part.inputs
    for operator in (hessian, gauss_newton, fisher):
        assert far(operator(loss).dense(), expected) < 1e-12


def test_logistic_regression():
    class Logistic(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            margin = x @ self.w
            return torch.stack([torch.zeros_like(margin), margin], 1)

    part = classes(30, 5, 2)
    loss = Objective(seeded(Logistic), [part])
    s = torch.sigmoid(part.inputs @ loss.vector())
    expected = (part.inputs * (s * (1 - s))[:, None]).T @ part.inputs / 30
    for operator in (hessian, gauss_newton, fisher):
        assert far(operator(loss).dense(), expected) < 1e-12


def test_softmax_regression():
    part = classes(20, 4, 3)
    loss = Objective(seeded(lambda: nn.Linear(4, 3, bias=False)), [part])
    p = (part.inputs @ loss.vector().reshape(3, 4).T).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nab,ni,nj->aibj", middle, part.inputs, part.inputs).reshape(12, 12) / 20
    for operator in (hessian, gauss_newton):
        assert far(operator(loss).dense(), expected) < 1e-12


def test_gauss_newton_is_positive_semidefinite_and_of_low_rank():
    rows, outputs = 3, 4
    loss = Objective(seeded(lambda: Normed(outputs)), [classes(rows, 4, outputs)])
    values = torch.linalg.eigvalsh(gauss_newton(loss).dense())
    assert values[0] >= -1e-12 * values[-1]
    assert int((values > 1e-12 * values[-1]).sum()) == rows * (outputs - 1)


def test_gauss_newton_is_the_hessian_where_outputs_hit_their_targets():
    module, part = seeded(Normed), classes(12, 4, 3)
    hit = Objective(module, [Part(part.inputs, module(part.inputs).detach())], "squared_error")
    assert far(gauss_newton(hit).dense(), hessian(hit).dense()) < 1e-8
    assert residual(hit).dense().norm() < 1e-8 * hessian(hit).dense().norm()
    missed = Objective(module, [Part(part.inputs, module(part.inputs).detach() + 1)], "squared_error")
    assert far(gauss_newton(missed).dense(), hessian(missed).dense()) > 0.1


def test_residual_is_the_difference(normed):
    expected = hessian(normed).dense() - gauss_newton(normed).dense()
    torch.testing.assert_close(residual(normed).dense(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("criterion", ["cross_entropy", "squared_error"])
def test_empirical_fisher_is_the_mean_of_the_rows_own_gradients_squared(criterion):
    part, module = classes(9, 4, 3), seeded(Normed)
    targets = part.targets if criterion == "cross_entropy" else nn.functional.one_hot(part.targets, 3).double()
    loss = Objective(module, [Part(part.inputs[:5], targets[:5]), Part(part.inputs[5:], targets[5:])], criterion)
    expected = torch.zeros(loss.size, loss.size, dtype=torch.float64)
    for i in range(9):
        slope = Objective(module, [Part(part.inputs[i : i + 1], targets[i : i + 1])], criterion).gradient()
        expected += torch.outer(slope, slope) / 9
    assert far(empirical_fisher(loss).dense(), expected) < 1e-12
    assert far(fisher(loss).dense(), expected) > 0.1


def test_fisher_is_the_mean_over_labels_drawn_from_the_model():
    part, module = classes(6, 4, 3), seeded(Normed)
    loss = Objective(module, [part])
    p = module(part.inputs).softmax(1).detach()
    expected = torch.zeros(loss.size, loss.size, dtype=torch.float64)
    for i in range(6):
        for label in range(3):
            slope = Objective(module, [Part(part.inputs[i : i + 1], torch.tensor([label]))]).gradient()
            expected += p[i, label] * torch.outer(slope, slope) / 6
    assert far(fisher(loss).dense(), expected) < 1e-12


# --- parameters and parts


@OPERATORS
def test_parts_of_unequal_size_are_one_big_batch(operator):
    part, module = classes(15, 4, 3), seeded(Normed)
    cuts = (0, 1, 3, 7, 8, 15)  # more than are kept between products
    parts = [Part(part.inputs[a:b], part.targets[a:b]) for a, b in itertools.pairwise(cuts)]
    whole, kept, anew = (Objective(module, ps) for ps in ([part], [parts[0], Part(part.inputs[1:], part.targets[1:])], parts))
    for loss in (kept, anew):
        assert loss.loss() == pytest.approx(whole.loss(), rel=1e-14)
        assert far(operator(loss).dense(), operator(whole).dense()) < 1e-12


@OPERATORS
def test_what_is_frozen_is_left_out_and_what_is_unused_has_zeros(operator):
    module = seeded(Normed)
    whole = operator(Objective(module, [classes(12, 4, 3)])).dense()
    module.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    module.norm.requires_grad_(False)
    loss = Objective(module, [classes(12, 4, 3)])
    assert list(loss.parameters) == ["spare", "first.weight", "first.bias", "last.weight", "last.bias"]
    found = operator(loss).dense()
    assert (found[:2] == 0).all()
    assert (found[:, :2] == 0).all()
    rest = torch.cat([torch.arange(30), torch.arange(42, 63)])
    assert far(found[2:, 2:], whole[np.ix_(rest, rest)]) < 1e-12


@OPERATORS
def test_parameters_by_name_are_a_block_of_the_whole(operator):
    module, part = seeded(Normed), classes(12, 4, 3)
    whole = Objective(module, [part])
    at = whole.where("norm", "last.bias")
    block = Objective(module, [part], parameters=["norm", "last.bias"])
    dense = operator(whole).dense()
    assert far(operator(block).dense(), dense[np.ix_(at, at)]) < 1e-12
    assert far(operator(whole).restricted(at).dense(), dense[np.ix_(at, at)]) < 1e-12


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(torch.tanh(self.mix(self.embed(tokens))))

    tokens = torch.tensor([0, 3, 5, 2, 0])
    loss = Objective(seeded(Tied), [Part(tokens, tokens.roll(1))])
    assert loss.size == 24 + 20
    (v,) = random_columns(loss.size, 1, 0, like=hessian(loss)).T
    assert far(by_differences(loss, v), hessian(loss) @ v) < 1e-7
    assert asymmetry(gauss_newton(loss)) < 1e-13


def test_low_precision_is_promoted_before_anything_is_computed():
    module, part = seeded(Normed).bfloat16(), classes(12, 4, 3)
    promoted = Normed().double()
    promoted.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    loss = Objective(module, [part])
    assert loss.dtype == torch.float64
    torch.testing.assert_close(hessian(loss).dense(), hessian(Objective(promoted, [part])).dense(), rtol=0, atol=0)
    assert module.first.weight.dtype == torch.bfloat16


# --- heads


def llama(shared):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=shared,
        max_position_embeddings=12,
        tie_word_embeddings=False,
        attention_bias=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def marked(loss, entries):
    """Places of hand-picked entries of parameters."""
    flags = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in loss.parameters.items()}
    for name, index in entries:
        flags[f"model.{name}"][index] = True
    return set(torch.nonzero(torch.cat([f.flatten() for f in flags.values()])).flatten().tolist())


def test_places_of_a_gpt2_head(random_examples):
    model = language("gpt2")  # two heads of width four
    loss = of_model(model, random_examples(t=10))
    attention = "transformer.h.1.attn"
    entries = [(f"{attention}.c_proj.weight", slice(4, 8))]  # rows are inputs
    for third in range(3):  # queries, keys, values
        outputs = slice(8 * third + 4, 8 * third + 8)
        entries += [(f"{attention}.c_attn.weight", (slice(None), outputs)), (f"{attention}.c_attn.bias", outputs)]
    found = head_places(loss, model, block=1, head=1).tolist()
    assert len(found) == len(set(found)) == 4 * 8 + 3 * (8 * 4 + 4)
    assert set(found) == marked(loss, entries)


@pytest.mark.parametrize("shared", [4, 2, 1])
def test_places_of_a_llama_head_include_the_keys_and_values_of_its_group(random_examples, shared):
    model = llama(shared)
    loss = of_model(model, random_examples(t=10))
    group = 2 * shared // 4
    attention, own, theirs = "model.layers.1.self_attn", slice(8, 12), slice(4 * group, 4 * group + 4)
    entries = [(f"{attention}.q_proj.{leaf}", own) for leaf in ("weight", "bias")]
    entries += [(f"{attention}.{name}_proj.{leaf}", theirs) for name in "kv" for leaf in ("weight", "bias")]
    entries += [(f"{attention}.o_proj.weight", (slice(None), own))]
    found = head_places(loss, model, block=1, head=2).tolist()
    assert len(found) == len(set(found))
    assert set(found) == marked(loss, entries)


def test_what_belongs_to_no_varying_parameter_is_left_out_of_a_head(random_examples):
    model = language("gpt2")
    loss = of_model(model, random_examples(t=10), parameters=["transformer.h.0.attn.c_attn.weight"])
    assert len(head_places(loss, model, block=0, head=0)) == 8 * 3 * 4


def test_the_block_of_a_head_is_that_of_the_dense_hessian(random_examples):
    model = language("gpt2")
    loss = of_model(model, random_examples(t=10), parameters=["transformer.h.0.attn"])
    at = head_places(loss, model, block=0, head=1)
    dense = hessian(loss).dense()
    assert far(hessian(loss).restricted(at).dense(), dense[np.ix_(at, at)]) < 1e-12


# --- the recorded model


class Everywhere(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits.flatten(0, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_products_with_the_recorded_model(attention):
    with np.load(DATA) as file:
        stored = {name: file[name] for name in file.files}
    config = GPT2Config(
        vocab_size=17,
        n_positions=17,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_inner=32,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    model = GPT2LMHeadModel(config).double()
    weights = {name.removeprefix("param."): torch.from_numpy(w) for name, w in stored.items() if name.startswith("param.")}
    assert list(weights) == [name for name, _ in model.named_parameters()] or json.loads(str(stored["meta"]))
    model.load_state_dict(weights, strict=False)
    ids, labels = (torch.from_numpy(stored[name]) for name in ("input_ids", "labels"))
    # Two parts of unequal size, for good measure.
    loss = Objective(Everywhere(model), [Part(ids[:5], labels[:5].flatten()), Part(ids[5:], labels[5:].flatten())])
    assert [name.removeprefix("model.") for name in loss.parameters] == stored["param_order"].tolist()
    assert loss.loss() == pytest.approx(float(stored["loss"]), rel=1e-12)
    v = torch.from_numpy(stored["hvp_v"]).T
    assert far(loss.gradient(), torch.from_numpy(stored["grad"])) < 1e-11
    assert far(hessian(loss) @ v, torch.from_numpy(stored["hvp_Hv"]).T) < 1e-11
    assert far(gauss_newton(loss) @ v, torch.from_numpy(stored["ggn_Gv"]).T) < 1e-11


def test_constant_directions_of_a_gpt2_are_flat(random_examples):
    """The same vector added to all rows of the head, and anything added to the biases of the keys, changes no output."""
    loss = of_model(language("gpt2"), random_examples(t=10), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    columns = torch.zeros(2, loss.size, dtype=torch.float64)
    columns[0, loss.where("model.lm_head.weight")] = torch.randn(8, generator=generator, dtype=torch.float64).repeat(20)
    columns[1, loss.where("model.transformer.h.0.attn.c_attn.bias")[8:16]] = torch.randn(
        8, generator=generator, dtype=torch.float64
    )
    v = random_columns(loss.size, 1, 0, like=hessian(loss))
    for operator in (hessian, gauss_newton):
        of = operator(loss)
        assert (of @ columns.T).norm() < 1e-13 * (of @ v).norm()


# --- what products leave behind


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.parametrize(("parts", "products"), [(1, 500), pytest.param(6, 100, marks=pytest.mark.slow)])
def test_memory_is_flat_over_many_products(parts, products):
    """With graphs that are kept, and with so many parts that each product makes them anew."""
    of = hessian(Objective(seeded(Normed), [classes(50, 4, 3)] * parts))
    v = random_columns(of.size, 1, 0, like=of)
    for _ in range(20):
        of @ v
    gc.collect()
    before = resident()
    for _ in range(products):
        of @ v
    assert resident() - before < 20


def test_two_products_are_equal_bit_for_bit(normed):
    of = hessian(normed)
    v = random_columns(of.size, 1, 0, like=of)
    assert torch.equal(of @ v, of @ v)
    assert torch.equal(hessian(normed) @ v, of @ v)
