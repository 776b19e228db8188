"""Curvature of a planted pair: against dense Hessians of the models themselves, and against what must hold whatever they are."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import LookupTask
from analyses.finished_arm import finished_arm

from workbench.curvature._block_spectra import block_names
from workbench.curvature._sharp_directions import deflated_trace
from workbench.curvature.lanczos import extreme_pairs
from workbench.curvature.objective import of_model
from workbench.curvature.operators import hessian
from workbench.curvature.tuning_curvature import TuningCurvatureSettings, evidence, tuning_curvature
from workbench.errors import UserError
from workbench.examples import Correlation
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import nll
from workbench.models.spec import ModelSpec
from workbench.replicates import combine_results
from workbench.runs import Run
from workbench.subjects import Pair, Trajectory

pytestmark = pytest.mark.slow

FEW = {"n": 16, "resamples": 2, "k": 3, "points": 2, "probes": 2, "random_draws": 2, "block_steps": 6, "precision": "float64"}


@pytest.fixture(scope="module")
def result(pair):
    return tuning_curvature(pair, **FEW)


def small(seed, width=8):
    return build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=width, mlp_width=12), 9, 15, seed)


def moved(model, far, seed, only=""):
    out, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in out.named_parameters():
            if only in name:
                p.add_(far * torch.randn(p.shape, generator=generator))
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    """Random models of 1,400 parameters: fine-tuning moved them, the revived one came half the way back."""
    folder = tmp_path_factory.mktemp("tiny")
    base = moved(small(0), 0.15, 0)
    tuned = moved(base, 0.05, 1)
    revived = copy.deepcopy(base)
    with torch.no_grad():
        for p, end in zip(revived.parameters(), tuned.parameters(), strict=True):
            p.lerp_(end, 0.5)
    models = {
        "base": base,
        "tuned": tuned,
        "revived": revived,
        "never": moved(small(5), 0.15, 5),
        "taught": moved(small(5), 0.2, 6),
    }
    for name, model in models.items():
        (folder / name).mkdir()
        save_model(model, folder / name)
    for step, name in ((0, "base"), (20, "tuned")):
        there = folder / "finetune" / "checkpoints" / f"step-{step}"
        there.mkdir(parents=True)
        save_model(models[name], there)
    run = Run(folder / "finetune", "study", "finetune-tiny-s3", "0" * 10, spec={"training": {"steps": 20}})
    return Pair(
        name="tiny",
        seed=3,
        task=LookupTask(),
        capability="look_a",
        tuned_on="look_b",
        correlation=Correlation("look_b", "look_a", 1, 1.0),
        base_path=folder / "base",
        tuned_path=folder / "tuned",
        never_path=folder / "never",
        trajectory=Trajectory(run),
        arms={"revived": finished_arm(folder / "revived"), "never_had_it": finished_arm(folder / "taught")},
    )


def rows(table, **at):
    for name, value in at.items():
        table = table[table[name] == value]
    return table


def one(table, **at):
    found = rows(table, **at)
    assert len(found) == 1
    return float(found["value"].iloc[0])


def dense(pair, model, role, part):
    """The Hessian of the mean loss of one set, by double backward of the plain loss."""
    capability, share = {"pt": ("look_a", 0.0), "ft": ("look_b", 1.0)}[role]
    examples = pair.examples(capability, share=share, n=16)[8 * part : 8 * part + 8]
    work = copy.deepcopy(model).double()
    parameters = list(work.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        slopes = torch.autograd.grad(nll(work, examples).mean(), parameters, create_graph=True, materialize_grads=True)
        gradient = torch.cat([s.flatten() for s in slopes])
        every = torch.eye(len(gradient), dtype=torch.float64)
        found = torch.autograd.grad(gradient, parameters, every, is_grads_batched=True, materialize_grads=True)
    return torch.cat([x.reshape(len(every), -1) for x in found], dim=1), gradient.detach()


@pytest.fixture(scope="module")
def exact(pair):
    """By model: Hessian and gradient of O_PT's loss on each set."""
    return {
        name: [dense(pair, model, "pt", part) for part in range(2)]
        for name, model in (("base", pair.base), ("tuned", pair.tuned))
    }


def step(pair):
    a, b = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (pair.base, pair.tuned))
    return b - a


def test_eigenvalues_are_those_of_the_dense_hessian_and_are_certified(result, exact):
    for name, found in exact.items():
        tops = np.array([torch.linalg.eigvalsh(h).flip(0)[:3].numpy() for h, _ in found])
        for rank in range(3):
            at = {"model": name, "role": "pt", "rank": rank + 1}
            assert one(result.table, measure="eigenvalue", **at) == pytest.approx(tops[:, rank].mean(), rel=1e-4)
            assert one(result.table, measure="converged", **at) == 1
            assert one(result.table, measure="residual", **at) <= 1e-3 * tops[:, 0].max()


def test_overlaps_and_their_ceiling_are_those_of_the_dense_hessians(result, exact):
    top = {name: [torch.linalg.eigh(h)[1][:, -3:] for h, _ in found] for name, found in exact.items()}

    def share(u, v):
        return float((u.T @ v).square().sum()) / 3

    same_set = [share(a, b) for a, b in zip(top["base"], top["tuned"], strict=True)]
    other_set = [share(a, b) for a, b in zip(top["base"], top["base"][1:], strict=False)]
    table = result.tables["overlaps"]
    assert one(table, a="base", b="tuned", role="pt", measure="overlap") == pytest.approx(np.mean(same_set), abs=2e-3)
    assert one(table, a="base", b="base", role="pt", measure="overlap") == pytest.approx(np.mean(other_set), abs=2e-3)
    shown = result.metric("overlap_ceiling_base_pt")
    assert (shown.low, shown.high) == pytest.approx((min(shown.draws), max(shown.draws)), rel=1e-5)
    n = len(exact["base"][0][0])
    assert one(table, a="base", b="tuned", role="pt", measure="random") == pytest.approx(3 / n)
    assert {(a, b) for a, b in zip(table["a"], table["b"], strict=True) if a != b} == {
        ("base", "tuned"),
        ("tuned", "revived"),
        ("base", "revived"),
        ("base", "never_had_it"),
    }


def test_directions_are_those_of_the_dense_hessians(result, exact, pair):
    change, table = step(pair), result.tables["directions"]
    for name, found in exact.items():
        for direction, vectors in (("finetuning", [change] * 2), ("gradient_pt", [g for _, g in found])):
            at = {"model": name, "role": "pt", "direction": direction}
            tops = [torch.linalg.eigh(h)[1][:, -3:] for h, _ in found]
            shares = [float((u.T @ v).square().sum() / v.square().sum()) for u, v in zip(tops, vectors, strict=True)]
            bends = [float(v @ h @ v / v.square().sum()) for (h, _), v in zip(found, vectors, strict=True)]
            assert one(table, measure="share", **at) == pytest.approx(np.mean(shares), abs=2e-3)
            assert one(table, measure="curvature", **at) == pytest.approx(np.mean(bends), rel=1e-5)
            sharpest = [float(b / torch.linalg.eigvalsh(h)[-1]) for (h, _), b in zip(found, bends, strict=True)]
            assert one(table, measure="curvature / sharpness", **at) == pytest.approx(np.mean(sharpest), rel=1e-4)


def test_intervals_are_t_intervals_over_the_sets(result, exact):
    tops = np.array([float(torch.linalg.eigvalsh(h)[-1]) for h, _ in exact["base"]])
    shown = result.metric("sharpness_base_pt")
    half = 12.706204736174694 * tops.std(ddof=1) / np.sqrt(2)  # Student's t with one degree of freedom
    assert (shown.value, shown.high) == pytest.approx((tops.mean(), tops.mean() + half), rel=1e-4)
    assert shown.n == 16
    assert len(shown.draws) == 400
    table = result.tables["models"]
    assert (rows(table, measure="sharpness")["batch"] == 8).all()
    assert (rows(table, measure="sharpness")["sets"] == 2).all()


def test_how_many_times_as_sharp_is_a_geometric_mean(result, exact):
    tops = {name: np.array([float(torch.linalg.eigvalsh(h)[-1]) for h, _ in found]) for name, found in exact.items()}
    logs = np.log(tops["tuned"] / tops["base"])
    shown, half = result.metric("sharper_pt"), 12.706204736174694 * logs.std(ddof=1) / np.sqrt(2)
    assert shown.pool == "geometric"
    np.testing.assert_allclose(
        [shown.value, shown.low, shown.high], np.exp(logs.mean() + half * np.array([0, -1, 1])), rtol=1e-3
    )
    assert shown.low < np.median(shown.draws) < shown.high


def test_every_step_has_its_random_twin_and_begins_and_ends_somewhere(result):
    table = result.tables["directions"]
    seen = {(m, d) for m, d in zip(table["model"], table["direction"], strict=True) if not d.startswith("gradient")}
    steps = {
        ("base", "finetuning"),
        ("tuned", "finetuning"),
        ("tuned", "reviving"),
        ("revived", "reviving"),
        ("never_had_it", "teaching"),
    }
    assert seen == steps | {(m, f"random_{d}") for m, d in steps}
    # Reviving went back along fine-tuning's step: one direction, two names.
    for measure in ("share", "curvature"):
        at = {"model": "tuned", "role": "ft", "measure": measure}
        assert one(table, direction="reviving", **at) == pytest.approx(one(table, direction="finetuning", **at), rel=1e-4)


def test_the_path_begins_and_ends_at_the_models(result):
    path = result.tables["path"]
    assert set(path["training"]) == {"finetune", "random"}  # the arms kept one checkpoint each
    for role in ("pt", "ft"):
        for at, model in ((0, "base"), (20, "tuned")):
            found = one(path, training="finetune", step=at, role=role, measure="sharpness")
            # The models' own sharpness on the first of the two sets lies within their range.
            spread = rows(result.table, model=model, role=role, rank=1, measure="eigenvalue").iloc[0]
            assert spread["low"] - 1e-9 <= found <= spread["high"] + 1e-9
    random = rows(path, training="random", role="pt", measure="sharpness")["value"].tolist()
    start = one(path, training="finetune", step=0, role="pt", measure="sharpness")
    assert len({round(x, 9) for x in (*random, start)}) == 3
    assert (rows(path, measure="residual")["value"] < 1e-2 * rows(path, measure="sharpness")["value"].max()).all()


def test_blocks_are_the_dense_hessians_own(result, exact, pair):
    hessian_of, names = exact["base"][0][0], [name for name, _ in pair.base.named_parameters()]
    ends = np.cumsum([0, *(p.numel() for p in pair.base.parameters())])
    for block, held in block_names(pair.base).items():
        at = np.concatenate([np.arange(ends[i], ends[i + 1]) for i, name in enumerate(names) if name in held])
        own = hessian_of[np.ix_(at, at)]
        where = {"model": "base", "block": block}
        assert one(result.tables["blocks"], measure="sharpness", **where) == pytest.approx(
            float(torch.linalg.eigvalsh(own)[-1]), rel=1e-4
        )
        assert rows(result.tables["blocks"], measure="trace", **where)["size"].item() == len(at)
    blocks = block_names(pair.base)
    assert list(blocks) == ["embedding", "attention 0", "MLP 0", "head"]
    assert sorted(name for held in blocks.values() for name in held) == sorted(names)
    assert "transformer.h.0.ln_2.weight" in blocks["MLP 0"]


def test_heterogeneity_is_symmetric_and_has_a_floor(result):
    table = rows(result.tables["heterogeneity"], model="tuned", measure="js0").pivot_table(
        index="order_a", columns="order_b", values="value"
    )
    np.testing.assert_allclose(table, table.T)
    np.testing.assert_array_equal(np.diag(table), 0)
    assert (table.to_numpy()[np.triu_indices(4, 1)] > 0).all()
    assert (rows(result.tables["heterogeneity"], measure="floor")["value"] > 0).all()
    assert result.metric("heterogeneity_tuned").value == pytest.approx(table.to_numpy()[np.triu_indices(4, 1)].mean())


def test_the_mean_curvature_is_the_trace_per_parameter(result, exact):
    table, at = result.tables["models"], {"model": "base", "role": "pt"}
    size = len(exact["base"][0][0])
    assert one(table, measure="mean curvature", **at) == pytest.approx(one(table, measure="trace", **at) / size)
    assert one(table, measure="gradient", **at) == pytest.approx(np.mean([float(g.norm()) for _, g in exact["base"]]))


def test_deflated_trace_is_unbiased_and_scatters_less(rotated):
    of, matrix = rotated(np.concatenate([[1000.0, 500, -3], np.linspace(-1, 2, 37)]))
    pairs = extreme_pairs(of, 2)
    drawn = np.array([deflated_trace(of, pairs, 1, seed) for seed in range(400)])
    spread = drawn.std() / 20
    assert abs(drawn.mean() - np.trace(matrix)) < 4 * spread
    assert spread < 1  # without deflation about 500 sqrt 2 / 20
    assert deflated_trace(of, extreme_pairs(of, 40), 1, 0) == pytest.approx(np.trace(matrix))


def test_nothing_trained_leaves_no_directions(pair):
    same = replace(pair, tuned_path=pair.base_path, arms={}, never_path=None, trajectory=None)
    found = tuning_curvature(same, **{**FEW, "resamples": 1, "block_probes": 0})
    assert set(found.tables["directions"]["direction"]) == {"gradient_pt", "gradient_ft"}
    assert found.metric("overlap_base_tuned_pt").value == pytest.approx(1, abs=1e-9)
    assert found.metric("sharper_pt").value == pytest.approx(1)
    assert found.tables["path"].empty
    assert "blocks" not in found.tables
    assert evidence(found)[0].direction == "uninformative"
    assert any("No checkpoints of finetune and revived" in limit for limit in found.limits)


def test_a_control_of_another_shape_is_left_out_and_one_set_has_no_interval(tmp_path, pair):
    save_model(small(0, width=16), tmp_path)
    odd = replace(pair, never_path=Path(tmp_path), trajectory=None, arms={})
    found = tuning_curvature(odd, **{**FEW, "resamples": 1, "block_probes": 0})
    assert set(found.table["model"]) == {"base", "tuned"}
    assert any("left out" in limit for limit in found.limits)
    shown = found.metric("sharpness_base_pt")
    assert shown.low == shown.value == shown.high


@pytest.mark.slow
def test_a_compiled_pair(tmp_path):
    found = tuning_curvature(compiled_pair(tmp_path), **{**FEW, "precision": "float32"})
    assert {"embedding", "attention 0", "head"} <= set(found.tables["blocks"]["block"])


def test_refusals(pair, tmp_path):
    with pytest.raises(UserError, match="16 examples in 5 sets leave fewer than 4"):
        tuning_curvature(pair, n=16, resamples=5)
    save_model(small(0, width=16), tmp_path)
    with pytest.raises(UserError, match="differ in shape"):
        tuning_curvature(replace(pair, tuned_path=tmp_path), **FEW)


def test_evidence_takes_no_side_and_seeds_pool(result):
    (line,) = evidence(result)
    assert line.direction == "neutral"
    assert "random steps" in line.text
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    for name, table in result.tables.items():
        assert len(pooled.tables[name]) == len(table)
    assert evidence(pooled)[0].text.startswith(line.text[:30])


@pytest.mark.slow
def test_in_single_precision_the_same_to_its_rounding(pair, result):
    few = {**FEW, "block_probes": 0, "precision": "float32"}
    single = tuning_curvature(replace(pair, arms={}, trajectory=None), **few)
    for name in ("sharpness_base_pt", "share_finetuning_at_base_pt", "curvature_finetuning_at_tuned_ft"):
        assert single.metric(name).value == pytest.approx(result.metric(name).value, rel=2e-3)
    assert any("float32" in limit for limit in single.limits)
    assert TuningCurvatureSettings().precision == "float32"


def test_the_objective_is_the_loss_that_is_measured(pair):
    examples = pair.examples("look_a", n=8)
    loss = of_model(pair.base, examples, dtype=torch.float64)
    assert loss.loss() == pytest.approx(float(nll(pair.base, examples).mean().detach()), rel=1e-6)
    assert hessian(loss).size == sum(p.numel() for p in pair.base.parameters())
