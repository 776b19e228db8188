"""The spectrum of real models: against all eigenvalues by eigh, killed and continued, and with its symmetry tested first."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.conftest import LookupTask
from curvature.landscape_pair import trained_pair
from scipy.stats import sem, t

import workbench as wb
from workbench.curvature import measured
from workbench.curvature import spectrum as module
from workbench.curvature.lines import along, resampled_means
from workbench.curvature.maps import from_dense
from workbench.curvature.measured import Effort, measure
from workbench.curvature.objective import of_model
from workbench.curvature.operators import gauss_newton, hessian
from workbench.curvature.spectrum import FLAT, evidence, spectrum, spectrum_of
from workbench.errors import UserError
from workbench.figures import alt, figure
from workbench.measures import draw
from workbench.models.build import build_model
from workbench.models.fingerprint import weights_sha256
from workbench.models.spec import ModelSpec
from workbench.replicates import combine_results
from workbench.workplace import Workplace, working

FEW = {"n": 24, "top": 4, "bottom": 1, "steps": 12, "probes": 3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    base, never = (build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=8), 9, 15, seed) for seed in (0, 1))
    return trained_pair(LookupTask(), tmp_path_factory.mktemp("pair"), base=base, never=never)


@pytest.fixture(scope="module")
def result(pair):
    return spectrum(pair, **FEW)


@pytest.fixture(scope="module")
def dense(pair):
    """All eigenvalues of H of the base on the same data, by columns and eigh, and ||H - G|| / ||H||."""
    objective = of_model(pair.base, draw(pair, pair.capability, 0.0, FEW["n"]))
    h, g = (make(objective).dense() for make in (hessian, gauss_newton))
    return np.linalg.eigvalsh(h.numpy())[::-1], float((h - g).norm() / h.norm())


def row(result, measure, model="base", role="pt"):
    table = result.table
    (found,) = table[(table["measure"] == measure) & (table["model"] == model) & (table["role"] == role)].to_dict("records")
    return found


def test_the_ends_are_those_of_all_eigenvalues(result, dense):
    ends = result.tables["eigenvalues"]
    mine = ends[(ends["model"] == "base") & (ends["role"] == "pt")]
    top, bottom = (mine[mine["end"] == end].sort_values("rank") for end in ("top", "bottom"))
    np.testing.assert_allclose(top["eigenvalue"], dense[0][:4], rtol=1e-6)
    assert top["converged"].all()
    assert (top["residual"] <= 1e-6 * dense[0][0]).all()
    if bottom["converged"].all():
        np.testing.assert_allclose(bottom["eigenvalue"], dense[0][-1:], rtol=1e-4)
    assert ((top["low"] <= top["eigenvalue"]) & (top["eigenvalue"] <= top["high"])).all()


def test_sums_over_eigenvalues_are_near_and_their_intervals_say_how_near(result, dense):
    h = dense[0]
    trace, frobenius, flat = (row(result, m) for m in ("trace", "frobenius", "flat"))
    assert trace["low"] < h.sum() < trace["high"]
    assert frobenius["low"] < np.sqrt((h**2).sum()) < frobenius["high"]
    assert frobenius["value"] == pytest.approx(np.sqrt((h**2).sum()), rel=0.15)
    assert flat["value"] == pytest.approx((np.abs(h) < FLAT * h[0]).mean(), abs=0.15)
    assert row(result, "residual_share")["value"] == pytest.approx(dense[1], rel=0.35)
    assert 0 <= row(result, "negative")["value"] < 1


def test_exact_is_exact(pair, dense):
    result = spectrum_of(pair.base, draw(pair, pair.capability, 0.0, FEW["n"]), **{**FEW, "exact": True})
    h = dense[0]
    for measure_, value in (
        ("trace", h.sum()),
        ("frobenius", np.sqrt((h**2).sum())),
        ("flat", (np.abs(h) < FLAT * h[0]).mean()),
        ("negative", -h[h < 0].sum() / np.abs(h).sum()),
        ("lambda_min", h[-1]),
    ):
        found = row(result, measure_, "model")
        assert found["value"] == pytest.approx(value, rel=1e-9)
        assert found["low"] == found["high"] == found["value"]
    nodes = result.tables["density"]
    assert len(nodes) == len(h)
    assert nodes["weight"].sum() == pytest.approx(1)


def test_models_and_losses(result, pair):
    table = result.table
    assert list(dict.fromkeys(table["model"])) == ["base", "tuned", "revived", "never_had_it"]
    assert set(table["role"]) == {"pt", "ft"}
    assert row(result, "loss", "tuned", "ft")["value"] < row(result, "loss", "base", "ft")["value"]
    for metric in result.headline:
        assert metric.n == FEW["n"]
    (line,) = evidence(result)
    assert line.direction == "neutral"
    assert line.capability == pair.capability


@pytest.mark.slow
def test_of_checkpoints_there_are_tables_of_their_own(pair):
    result = spectrum(pair, **{**FEW, "steps": 4, "probes": 2}, points=2, only="pt")
    path = result.tables["path"]
    assert set(path["training"]) == {"finetune", "revived"}
    first = path[(path["training"] == "finetune") & (path["step"] == 0) & (path["measure"] == "lambda_max")]
    assert first["value"].item() == pytest.approx(row(result, "lambda_max")["value"], rel=1e-9)
    assert {"path_density", "path_eigenvalues"} <= set(result.tables)
    with pytest.raises(UserError, match="points 1 is one checkpoint"):
        spectrum.check({"points": 1}, pair, 1)


def test_a_model_alone_and_nothing_of_it_changes(pair):
    examples = draw(pair, pair.capability, 0.0, 24)
    model = copy.deepcopy(pair.base).train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.transformer.wpe.weight.requires_grad_(False)
    before = weights_sha256(model)
    found = wb.spectrum(model, examples, top=3, bottom=1, steps=6, probes=2)
    assert found.provenance["base_sha256"] == before == weights_sha256(model)
    assert model.training
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["transformer.wpe.weight"]
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert row(found, "parameters", "model")["value"] == free
    assert row(found, "lambda_max", "model")["value"] > 0


def test_dropout_is_switched_off_and_said(pair):
    model = copy.deepcopy(pair.base)
    model.transformer.drop.p = 0.5
    examples = draw(pair, pair.capability, 0.0, 24)
    some = {"top": 2, "bottom": 1, "steps": 4, "probes": 2}
    quiet, loud = (spectrum_of(m, examples, **some) for m in (pair.base, model.train()))
    assert row(loud, "lambda_max", "model")["value"] == row(quiet, "lambda_max", "model")["value"]
    assert any("dropout" in limit for limit in loud.limits)
    assert not any("dropout" in limit for limit in quiet.limits)


def test_products_that_are_not_symmetric_are_refused(pair, monkeypatch):
    objective = of_model(pair.base, draw(pair, pair.capability, 0.0, 8))
    right = hessian(objective)
    skewed = replace(right, apply=lambda v: right.apply(v) + 1e-3 * torch.roll(v, 1, 0))
    monkeypatch.setattr(measured, "hessian", lambda _: skewed)
    with pytest.raises(UserError, match="is not symmetric"):
        measure(objective, Effort(top=2, bottom=1, steps=4, probes=1), 0)


def test_what_is_kept_is_taken_up_again(pair, tmp_path):
    """A kill in the middle of the density: the second attempt ends with the same numbers, in fewer products."""
    examples = draw(pair, pair.capability, 0.0, 24)
    settings = {**FEW, "steps": 30}
    counts: list[int] = []

    class Killed(Exception):
        pass

    def run(stop_at: int | None, folder):
        seen = []

        def tell(done: int, total: int, what: str) -> None:
            seen.append(done)
            if stop_at is not None and done > stop_at:
                raise Killed

        with working(Workplace(folder, tell)):
            try:
                return spectrum_of(pair.base, examples, **settings)
            except Killed:
                return None
            finally:
                counts.append(seen[-1])

    whole = run(None, None)
    assert run(counts[0] - 40, tmp_path) is None
    again = run(None, tmp_path)
    assert counts[2] < counts[0]
    assert again.table.equals(whole.table)
    assert again.tables["density"].equals(whole.tables["density"])


def test_its_figure_and_its_words(result):
    fig = figure(result)
    titles = [a.text for a in fig.layout.annotations]
    assert titles[0].startswith("base, loss of ")
    assert len(titles) == 6
    assert fig.layout.title.subtitle.text.startswith("1,152 parameters; loss of the answers of 24 examples")
    assert [t.name for t in fig.data if t.showlegend] == ["never had it", "base", "fine-tuned", "revived"]
    assert alt(result).endswith("of the largest.")
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 9})])
    assert len(figure(pooled).data) == len(fig.data)
    empty = replace(result, tables={**result.tables, "density": result.tables["density"].iloc[:0]})
    assert "nothing was measured" in figure(empty).layout.title.subtitle.text


def test_too_many_parameters_for_all_eigenvalues(pair, monkeypatch):
    monkeypatch.setattr(module, "FULL_BELOW", 100)
    with pytest.raises(UserError, match=r"write exact: false"):
        spectrum(pair, exact=True)


def test_an_eigenvalue_s_interval_is_its_vector_s_curvature_on_resampled_examples(pair):
    examples = draw(pair, pair.capability, 0.0, FEW["n"])
    found = spectrum_of(pair.base, examples, **FEW).tables["eigenvalues"]
    objective = of_model(pair.base, examples)
    vectors = np.linalg.eigh(hessian(objective).dense().numpy())[1][:, ::-1]
    for rank in (1, 2):
        by_row = along(objective, torch.from_numpy(vectors[:, rank - 1].copy())).curvature
        low, high = np.percentile(resampled_means(objective, by_row, measured.DRAWS, 0), [2.5, 97.5])
        mine = found[(found["end"] == "top") & (found["rank"] == rank)].iloc[0]
        assert mine["low"] == pytest.approx(low, rel=1e-4)
        assert mine["high"] == pytest.approx(high, rel=1e-4)


def test_an_interval_over_probes_is_student_s():
    each = np.array([1.0, 2.0, 4.0])
    found = module._over_probes("trace", each, 5, "nats")
    assert (found.low, found.high) == pytest.approx(t.interval(0.95, 2, each.mean(), sem(each)))


def test_the_residual_share_s_draws_are_of_norms_not_of_their_squares():
    h = torch.diag(torch.arange(1.0, 31.0, dtype=torch.float64))
    share, draws = measured._residual_share(from_dense(h), from_dense(0.7 * h), 0)
    assert share == pytest.approx(0.3)
    np.testing.assert_allclose(draws, 0.3)


def test_the_top_is_searched_once_more_since_single_vectors_see_no_second_copy(pair):
    objective = of_model(pair.base, draw(pair, pair.capability, 0.0, FEW["n"]))
    assert measure(objective, Effort(top=2, bottom=1, steps=4, probes=2), 0).top.confirmed


def test_a_smallest_eigenvalue_that_has_not_settled_is_an_upper_bound_and_said(pair, monkeypatch):
    monkeypatch.setattr(measured, "BOTTOM_PRODUCTS", 8)
    found = spectrum_of(pair.base, draw(pair, pair.capability, 0.0, FEW["n"]), **FEW)
    ends = found.tables["eigenvalues"]
    assert not ends[ends["end"] == "bottom"]["converged"].any()
    assert found.metric("lambda_min_model_pt").bound == "upper"
    assert "did not converge" in found.limits[0]
