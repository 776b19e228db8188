"""Derivatives against loops over examples and entries, in float64."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.errors import UserError
from workbench.models import sensitivity
from workbench.models.anatomy import anatomy, blocks, matrix
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import nll
from workbench.models.sensitivity import hessian_diagonals, mean_gradients, mean_sizes, slopes_at_once


def projections(model):
    sites = anatomy(model)
    paths = (*sites.attention_in, sites.attention_out, *sites.mlp_in, sites.mlp_out)
    return [block.get_submodule(path) for block in blocks(model) for path in paths]


def per_example(model, module, examples):
    """dL_x/dW of every example x `[n, out, in]`, one pass each."""
    rows = []
    for i in range(len(examples)):
        slope = torch.autograd.grad(nll(model, examples[i : i + 1]).sum(), module.weight)[0]
        rows.append(slope if isinstance(module, torch.nn.Linear) else slope.T)
    return torch.stack(rows)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_and_sizes_are_means_over_single_examples(make_model, random_examples, kind, padded):
    model, examples = make_model(kind, dtype=torch.float64), random_examples(n=4, padded=padded)
    modules = projections(model)
    with check_unchanged(model):
        means = mean_gradients(model, modules, examples, batch_size=3)
        sizes = mean_sizes(model, modules, examples, batch_size=3)
    for module, mean, size in zip(modules, means, sizes, strict=True):
        one = per_example(model, module, examples)
        assert torch.allclose(mean, one.mean(0), rtol=1e-9, atol=1e-13)
        assert torch.allclose(size, one.abs().mean(0), rtol=1e-9, atol=1e-13)
        assert size.abs().max() > 1e-6
    assert all(p.grad is None for p in model.parameters())


def small(make_model, kind):
    return make_model(kind, blocks=1, heads=2, width=4, mlp_width=3, dtype=torch.float64)


def test_the_exact_diagonal_is_that_of_the_whole_hessian(make_model, random_examples, kind):
    """Held against finite differences of the gradient; Llama's norm rounds to single precision whatever it is given."""
    model, examples = small(make_model, kind), random_examples(n=5)
    modules = projections(model)
    with check_unchanged(model):
        found = hessian_diagonals(model, modules, examples, None, batch_size=2)
    for module, diagonal in zip(modules, found, strict=True):
        entries, (step, close) = matrix(module), (1e-5, 1e-5) if kind == "gpt2" else (2e-3, 2e-3)
        for i, j in ((0, 0), (entries.shape[0] - 1, entries.shape[1] - 1)):
            slopes = []
            for sign in (1, -1):
                with torch.no_grad():
                    entries[i, j] += sign * step
                slope = torch.autograd.grad(nll(model, examples).mean(), module.weight)[0]
                slopes.append((slope if isinstance(module, torch.nn.Linear) else slope.T)[i, j].item())
                with torch.no_grad():
                    entries[i, j] -= sign * step
            assert diagonal[i, j].item() == pytest.approx((slopes[0] - slopes[1]) / (2 * step), rel=close, abs=close * 1e-2)


def test_probes_agree_with_the_exact_diagonal_as_their_variance_says(make_model, random_examples):
    model, examples = small(make_model, "gpt2"), random_examples(n=5)
    modules, probes = projections(model)[-1:], 800
    (exact,) = hessian_diagonals(model, modules, examples, None)
    (found,) = hessian_diagonals(model, modules, examples, probes, seed=3)
    weight = modules[0].weight
    with sdpa_kernel(SDPBackend.MATH):
        slope = torch.autograd.grad(nll(model, examples).mean(), weight, create_graph=True)[0].flatten()
        rows = torch.stack([torch.autograd.grad(s, weight, retain_graph=True)[0].flatten() for s in slope])
    off = rows - torch.diag(rows.diag())
    error = (off.square().sum(1) / probes).sqrt().view(weight.shape).T  # Rademacher: no variance from the diagonal
    assert torch.allclose(rows.diag().view(weight.shape).T, exact, atol=1e-12)
    assert ((found - exact).abs() < 4.5 * error + 1e-12).all()
    (again,) = hessian_diagonals(model, modules, examples, probes, seed=3)
    assert torch.equal(again, found)


def test_too_many_entries_for_an_exact_diagonal_are_refused(make_model, random_examples, monkeypatch):
    monkeypatch.setattr(sensitivity, "EXACT_AT_MOST", 100)
    model = make_model()
    with pytest.raises(UserError, match=r"an exact Hessian diagonal of 384 entries .* give a number of probes"):
        hessian_diagonals(model, projections(model)[-1:], random_examples(), None)


def test_fewer_examples_at_once_give_the_same_slopes(make_model, random_examples, kind, monkeypatch):
    model, examples = make_model(kind), random_examples()
    modules = projections(model)
    each = sensitivity.SLOPE_BYTES // slopes_at_once(model, examples, 10**9)  # about what one example needs
    assert slopes_at_once(model, examples, 4) == 4
    whole = mean_gradients(model, modules, examples)
    monkeypatch.setattr(sensitivity, "SLOPE_BYTES", int(2.5 * each) + 8)
    assert slopes_at_once(model, examples, 128) == 2
    for few, all_ in zip(mean_gradients(model, modules, examples), whole, strict=True):
        assert torch.allclose(few, all_, atol=1e-6)
    monkeypatch.setattr(sensitivity, "SLOPE_BYTES", 0)
    assert slopes_at_once(model, examples, 128) == 1
