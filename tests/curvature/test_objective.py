"""The loss as a function of flat parameters: its value, its gradient, its order, its refusals, and the model left as it was."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from workbench.curvature.maps import random_columns
from workbench.curvature.objective import DOUBLE_BELOW, Objective, Part, of_model
from workbench.curvature.operators import hessian
from workbench.errors import UserError
from workbench.models.build import build_model
from workbench.models.forward import nll
from workbench.models.spec import ModelSpec


class Dropped(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 6), inner or nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.inner(torch.tanh(self.first(x))))


@pytest.fixture
def part() -> Part:
    generator = torch.Generator().manual_seed(0)
    return Part(torch.randn(10, 4, dtype=torch.float64, generator=generator), torch.randint(0, 3, (10,), generator=generator))


def double(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama"])


def language(kind):
    return build_model(ModelSpec(kind=kind, blocks=2, heads=2, width=8, mlp_width=12), 20, 14, 0)


@KINDS
@pytest.mark.parametrize("k", [1, 2])
def test_the_loss_of_answers_is_their_mean_negative_log_likelihood(random_examples, kind, k):
    model, examples = language(kind).double(), random_examples(n=7, t=12, k=k)
    loss = of_model(model, examples)
    assert loss.rows == 7 * k
    close = 1e-12 if kind == "gpt2" else 1e-8  # a Llama's own norms are in single precision
    assert loss.loss() == pytest.approx(float(nll(model, examples).mean().detach()) / k, rel=close)
    expected = torch.autograd.grad(nll(model, examples).mean() / k, list(model.parameters()), materialize_grads=True)
    torch.testing.assert_close(loss.gradient(), loss.flat(expected), rtol=1e3 * close, atol=close)


@KINDS
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_of_text_is_that_of_the_tokens_that_training_has_as_targets(random_examples, kind, padded):
    model, examples = language(kind).double(), random_examples(n=7, t=12, everywhere=True, padded=padded)
    mask = None
    if examples.attention_mask is not None:  # nothing is learned from padding
        examples = replace(examples, loss_mask=examples.loss_mask & examples.attention_mask)
        mask = examples.attention_mask[:, :-1].long()
    logits = model(input_ids=examples.tokens[:, :-1], attention_mask=mask).logits
    each = nn.functional.cross_entropy(logits.transpose(1, 2), examples.tokens[:, 1:], reduction="none")
    there = examples.loss_mask[:, 1:]
    assert of_model(model, examples, "text").loss() == pytest.approx(float(each[there].mean().detach()), rel=1e-9)


@KINDS
@pytest.mark.parametrize("on", ["answers", "text"])
def test_more_tokens_than_fit_are_held_in_parts_and_weigh_the_same(random_examples, kind, on):
    model, examples = language(kind), random_examples(n=7, t=12, everywhere=on == "text")
    whole = of_model(model, examples, on)
    parted = of_model(model, examples, on, tokens=36)  # three texts at a time
    assert (len(whole.parts), len(parted.parts)) == (1, 3)
    assert parted.loss() == pytest.approx(whole.loss(), rel=1e-12)
    torch.testing.assert_close(parted.gradient(), whole.gradient(), rtol=1e-9, atol=1e-14)
    v = random_columns(whole.size, 1, 0, like=hessian(whole))
    torch.testing.assert_close(hessian(parted) @ v, hessian(whole) @ v, rtol=1e-9, atol=1e-11)


def test_vectors_split_and_flatten_in_the_order_of_named_parameters(part):
    module = double(Dropped)
    loss = Objective(module, [part])
    assert torch.equal(loss.vector(), torch.cat([p.detach().flatten() for _, p in module.named_parameters()]))
    vector = torch.arange(loss.size, dtype=torch.float64)
    assert torch.equal(loss.flat(loss.split(vector)), vector)
    many = torch.stack([vector, -vector])
    assert torch.equal(loss.flat(loss.split(many), many=True), many)
    assert loss.where("first.bias").tolist() == list(range(24, 30))
    assert loss.where("last").tolist() == list(range(30, loss.size))


def test_put_moves_to_other_parameters(part):
    module = double(Dropped).eval()
    loss, other = Objective(module, [part]), double(Dropped, seed=1).eval()
    loss.put(torch.cat([p.detach().flatten() for p in other.parameters()]))
    assert loss.loss() == pytest.approx(float(nn.functional.cross_entropy(other(part.inputs), part.targets).detach()))


def test_precision_goes_by_size(part):
    assert Objective(double(Dropped).float(), [Part(part.inputs.double(), part.targets)]).dtype == torch.float64
    wide = nn.Linear(4, DOUBLE_BELOW // 4)
    assert Objective(wide, [Part(part.inputs.float(), part.targets)]).dtype == torch.float32
    assert Objective(wide, [part], parameters=["bias"]).dtype == torch.float64


def test_model_mode_gradients_and_flags_are_left_as_they_were(random_examples):
    model = language("gpt2").train()
    model.transformer.h[0].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.full_like(model.lm_head.weight, 3.0)
    before, slopes = copy.deepcopy(model), {name: p.grad for name, p in model.named_parameters()}
    loss = of_model(model, random_examples(t=12), parameters=["transformer.h.1", "lm_head"])
    of = hessian(loss)
    of @ random_columns(loss.size, 2, 0, like=of)
    loss.gradient()
    loss.put(loss.vector() + 1)
    for (name, p), (_, old) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(p, old), name
        assert p.requires_grad == old.requires_grad
        assert p.grad is slopes[name]
    assert bool((model.lm_head.weight.grad == 3).all())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("inner", [nn.Dropout(0.5), nn.AlphaDropout(0.1)])
def test_dropout_is_switched_off_and_said(part, inner):
    module = double(lambda: Dropped(copy.deepcopy(inner))).train()
    loss = Objective(module, [part])
    of = hessian(loss)
    v = random_columns(loss.size, 1, 0, like=of)
    assert torch.equal(of @ v, hessian(Objective(module, [part])) @ v)
    assert loss.loss() == Objective(copy.deepcopy(module).eval(), [part]).loss()
    assert len(loss.notes) == 1
    assert "dropout" in loss.notes[0]
    assert module.training
    assert Objective(module.eval(), [part]).notes == ()


@pytest.mark.parametrize("trained", [True, False])
def test_dropout_inside_attention_is_said_too(trained):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)

        def forward(self, x):
            return self.attend(x, x, x, need_weights=False)[0][:, 0]

    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = Objective(double(Attends).train(trained), [Part(x, torch.tensor([0, 1, 2]))])
    assert bool(loss.notes) == trained
    assert loss.loss() == loss.loss()


def test_batch_norms_are_held_and_said(part):
    module = double(lambda: Dropped(nn.BatchNorm1d(6))).train()
    before = copy.deepcopy(module.inner.running_mean)
    loss = Objective(module, [part])
    hessian(loss) @ torch.ones(loss.size, dtype=torch.float64)
    assert torch.equal(module.inner.running_mean, before)
    assert "running means" in loss.notes[0]


def test_refusals(part, random_examples):
    module = double(Dropped).eval()
    with pytest.raises(UserError, match="there are 0 rows"):
        Objective(module, [])
    with pytest.raises(UserError, match="there are 0 rows"):
        Objective(module, [Part(part.inputs[:0], part.targets[:0])])
    with pytest.raises(UserError, match=r"'midle' or begins with it; there are first\.weight, first\.bias, last\.weight"):
        Objective(module, [part], parameters=["midle"])
    with pytest.raises(UserError, match="no parameter that may vary is called 'fir'"):
        Objective(module, [part], parameters=["fir"])
    broken = copy.deepcopy(module)
    with torch.no_grad():
        broken.last.bias[0] = float("nan")
    with pytest.raises(UserError, match="is nan; it has no curvature"):
        Objective(broken, [part])
    with pytest.raises(UserError, match="every parameter of the model is frozen"):
        Objective(module.requires_grad_(False), [part])
    model = language("gpt2")
    with pytest.raises(UserError, match=r"is called 'transformer\.z' or begins with it; there are transformer\.wte"):
        of_model(model, random_examples(t=12), parameters=["transformer.z"])
