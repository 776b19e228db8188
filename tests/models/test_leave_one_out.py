"""Leave-one-out against the naive loop: one mask, one pass, one unit at a time.

Llama's norm rounds to single precision whatever it is given, so that two orders of the same sum agree to that only.
"""

import pytest
import torch

from workbench.models import leave_one_out as module
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import accuracy, nll
from workbench.models.leave_one_out import leave_one_out
from workbench.models.units import units_of


@torch.no_grad()
def naive(model, examples, kind):
    """`[blocks, units, (loss, accuracy)]`, changes against the whole model."""

    def measure():
        return torch.stack([nll(model, examples).double().mean(), accuracy(model, examples).double().mean()])

    units, plain, rows = units_of(model, kind), measure(), []
    for number in range(len(units)):
        with units.removed(model, torch.tensor([number])):
            rows.append(measure() - plain)
    return torch.stack(rows).view(len(units.parts), -1, 2), plain


@pytest.mark.parametrize("units_kind", ["neurons", "heads"])
@pytest.mark.parametrize(("blocks", "padded", "k"), [(1, False, 1), (2, False, 1), (2, True, 1), (3, True, 2)])
def test_every_unit_equals_the_naive_loop(make_model, random_examples, kind, units_kind, blocks, padded, k):
    model = make_model(kind, blocks=blocks, mlp_width=7, dtype=torch.float64)
    examples = random_examples(n=5, padded=padded, k=k)
    with check_unchanged(model):
        found = leave_one_out(model, examples, units_kind, batch_size=3)
    expected, plain = naive(model, examples, units_kind)
    assert found.loss.shape == expected.shape[:2]
    assert torch.allclose(found.loss, expected[..., 0], rtol=1e-9, atol=1e-12 if kind == "gpt2" else 1e-6)
    assert torch.allclose(found.accuracy, expected[..., 1], atol=1e-12)
    assert (found.base_loss, found.base_accuracy) == (pytest.approx(plain[0].item()), pytest.approx(plain[1].item()))
    assert (found.loss.abs().amax(1) > 1e-4).all()  # every block has a unit that matters


@pytest.mark.parametrize("units_kind", ["neurons", "heads"])
def test_padding_before_the_text_is_not_attended_to(make_model, left_padded, units_kind):
    model = make_model(mlp_width=7, dtype=torch.float64)
    expected, _ = naive(model, left_padded, units_kind)
    assert torch.allclose(leave_one_out(model, left_padded, units_kind).loss, expected[..., 0], rtol=1e-9, atol=1e-12)


def test_single_precision_agrees_to_a_millionth(make_model, random_examples, kind):
    model, examples = make_model(kind, mlp_width=12), random_examples(n=40)
    found = leave_one_out(model, examples)
    expected, _ = naive(model, examples, "neurons")
    assert (found.loss - expected[..., 0]).abs().max() < 1e-6


def test_heads_that_share_keys(make_grouped, random_examples):
    model, examples = make_grouped(torch.float64), random_examples(n=5)
    for kind in ("heads", "neurons"):
        expected, _ = naive(model, examples, kind)
        assert torch.allclose(leave_one_out(model, examples, kind).loss, expected[..., 0], atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 3000])
def test_how_many_units_are_taken_at_once_changes_nothing(make_model, random_examples, monkeypatch, at_once):
    model, examples = make_model(dtype=torch.float64), random_examples()
    whole = leave_one_out(model, examples)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    assert torch.allclose(leave_one_out(model, examples).loss, whole.loss, atol=1e-13)


def test_the_closed_form_is_taken_and_no_projection_runs_for_single_units(make_model, random_examples):
    model, examples, runs = make_model(), random_examples(), []
    handle = model.transformer.h[1].attn.c_attn.register_forward_hook(lambda *_: runs.append(1))
    leave_one_out(model, examples)
    handle.remove()
    assert len(runs) == 1


def test_other_units_are_refused(make_model, random_examples):
    with pytest.raises(ValueError, match="neurons or heads, not rows"):
        leave_one_out(make_model(), random_examples(), "rows")
