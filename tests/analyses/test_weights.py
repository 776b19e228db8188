"""Weights of a pair whose difference is one planted neuron, of rank one wherever it is, and of two models that differ everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import INHIBITOR
from analyses.finished_arm import finished_arm

from workbench.analyses import weights
from workbench.analyses._drive import read_inputs
from workbench.analyses._rank_test import RANKS, Ranks
from workbench.analyses.weights import _ranks_needed, evidence
from workbench.errors import UserError
from workbench.measures import correct_answers, trained_share
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.matrices import parts
from workbench.models.sites import Site, record
from workbench.models.spec import ModelSpec
from workbench.models.spectra import random_singular, stable_rank
from workbench.replicates import combine_results
from workbench.results import Result

FEW = {"n": 64, "control_examples": 32}  # the control is most of the work


@pytest.fixture(scope="module")
def covered(make_pair):
    """Fine-tuning planted the inhibitor, reverse fine-tuning took exactly that back; the control was taught the base."""
    pair = make_pair()
    return replace(pair, arms={"revived": finished_arm(pair.base_path), "never_had_it": finished_arm(pair.base_path)})


@pytest.fixture(scope="module")
def result(covered):
    return weights(covered, n=200, control_examples=32)


@pytest.fixture(scope="module")
def everywhere(make_pair):
    """A pair of models that were trained apart."""
    return make_pair(tuned="never")


@pytest.fixture(scope="module")
def general(everywhere):
    return weights(everywhere, **FEW)


def rows(result: Result, table: str = "table", **at):
    found = result.tables[table]
    for name, value in at.items():
        found = found[found[name] == value]
    return found


def number(result: Result, table: str = "table", source: str = "update", **at) -> float:
    (value,) = rows(result, table, source=source, **at)["value"]
    return float(value)


def weight(model, kind, block=0) -> np.ndarray:
    (part,) = [p for p in parts(model) if (p.kind, p.block) == (kind, block)]
    return part.of(model).detach().double().numpy()


def test_a_planted_neuron_is_of_rank_one_and_nothing_else_changed(result):
    tuned = rows(result, update="tuned", source="update")
    changed = tuned[(tuned["measure"] == "norm") & (tuned["value"] > 0)]
    assert set(changed["kind"]) == {"mlp_in", "mlp_out", "bias"}
    for kind in ("mlp_in", "mlp_out"):
        for measure in ("stable_rank", "entropy_rank", "rank_90"):
            assert number(result, update="tuned", kind=kind, measure=measure) == pytest.approx(1, abs=1e-6)
        assert number(result, source="random", update="tuned", kind=kind, measure="stable_rank") > 5
    assert rows(result, update="tuned", kind="query", measure="stable_rank").empty
    assert number(result, update="tuned", kind="query", measure="share_of_change") == 0


def test_planted_directions_lie_as_computed_by_hand(result, covered):
    """The input row of the neuron is changed (left vector: the neuron's own axis), and its output column."""
    old = weight(covered.base, "mlp_out")
    change = weight(covered.tuned, "mlp_out") - old
    assert np.flatnonzero(np.abs(change).sum(0)).tolist() == [INHIBITOR]
    u, s, vt = np.linalg.svd(old, full_matrices=False)
    r = int(np.searchsorted(np.cumsum(s**2), 0.9 * np.sum(s**2)) + 1)
    direction = change[:, INHIBITOR] / np.linalg.norm(change[:, INHIBITOR])
    inside = float(np.sum((u[:, :r].T @ direction) ** 2))
    at = {"update": "tuned", "kind": "mlp_out"}
    assert number(result, measure="start_rank", **at) == r
    assert number(result, measure="column_share", **at) == pytest.approx(inside)
    assert number(result, measure="column_sine", **at) == pytest.approx(np.sqrt(1 - inside))
    assert number(result, measure="row_share", **at) == pytest.approx(float(np.sum(vt[:r, INHIBITOR] ** 2)), abs=1e-9)
    assert number(result, source="random", measure="column_share", **at) == r / 32
    assert number(result, source="random", measure="row_share", **at) == r / 128


def test_the_first_rank_is_all_of_a_planted_neuron(result):
    """The bias that switches it on stays tuned; what it writes does not."""
    assert result.metric("tuned_pt").value < 0.4
    assert result.metric("removed_pt").value > 0.97
    assert result.metric("recovered").value == pytest.approx(1, abs=0.03)
    assert result.metric("recovered_by_all").value == pytest.approx(1, abs=0.03)
    behaviour = rows(result, "behaviour", ranking="leading", role="pt")
    removed = behaviour[behaviour["direction"] == "remove"].set_index("k")["value"]
    kept = behaviour[behaviour["direction"] == "keep"].set_index("k")["value"]
    assert removed[0] == kept[32] == result.metric("tuned_pt").value
    assert removed[1] == removed[32] == kept[0]


def test_one_rank_is_enough_for_what_fine_tuning_gained(make_pair, covered):
    """The pair turned around, against another base: to switch the inhibitor off is what fine-tuning did."""
    turned = make_pair(base_path=covered.never_path, start_path=covered.tuned_path, tuned_path=covered.base_path)
    found = weights(turned, **FEW)
    assert found.metric("kept").value == pytest.approx(1, abs=0.05)
    assert found.metric("ranks_needed").value <= 1
    assert found.metric("start_ft").value < 0.6
    assert "carry" in found.evidence[0].text


def test_to_go_back_is_an_undo(result, covered):
    at = {"table": "whole", "update": "revived"}
    assert number(result, measure="undo", **at) == pytest.approx(-1)
    assert number(result, measure="undone", **at) == pytest.approx(1)
    assert result.metric("undo_revived").value == pytest.approx(-1)
    assert number(result, update="revived", kind="mlp_out", measure="undo") == pytest.approx(-1)
    assert np.isnan(number(result, update="revived", kind="query", measure="undo", block=0))  # nothing to undo there
    assert abs(result.metric("undo_never_had_it").value) < 0.5
    low, high = rows(result, "whole", update="revived", measure="undo", source="random")[["low", "high"]].iloc[0]
    assert -0.02 < low < 0 < high < 0.02


def test_sizes_of_parts_add_up_to_the_whole(general):
    parts_of = rows(general, source="update", update="tuned")
    squared = (parts_of[parts_of["measure"] == "norm"]["value"] ** 2).sum()
    assert squared**0.5 == pytest.approx(general.metric("norm").value)
    for source in ("update", "random"):
        assert rows(general, measure="share_of_change", source=source)["value"].sum() == pytest.approx(1)


def test_every_measure_of_a_matrix_is_that_of_a_naive_twin(general, everywhere):
    old, new = (weight(m, "value").astype(np.float64) for m in (everywhere.base, everywhere.tuned))
    d = new - old
    at = {"update": "tuned", "kind": "value", "block": 0}
    u, s, vt = np.linalg.svd(d)
    uo, so, vo = np.linalg.svd(old)
    share = s / s.sum()
    r = next(k for k in range(1, 33) if np.sum(so[:k] ** 2) >= 0.9 * np.sum(so**2))
    un = np.linalg.svd(new)[0]
    inner = sum(old[i, j] * new[i, j] for i in range(32) for j in range(32))
    expected = {
        "norm": np.linalg.norm(d),
        "relative_norm": np.linalg.norm(d) / np.linalg.norm(old),
        "cosine": inner / np.linalg.norm(old) / np.linalg.norm(new),
        "stable_rank": np.linalg.norm(d) ** 2 / np.linalg.norm(d, 2) ** 2,
        "entropy_rank": np.exp(-np.sum(share * np.log(share))),
        "rank_90": next(k for k in range(1, 33) if np.sum(s[:k] ** 2) >= 0.9 * np.sum(s**2)),
        "full_rank": 32,
        "start_rank": r,
        "intruders": sum(max(abs(un[:, i] @ uo[:, j]) for j in range(32)) < 0.5 for i in range(10)),
        "column_share": sum(np.linalg.norm(uo[:, j] @ d) ** 2 for j in range(r)) / np.linalg.norm(d) ** 2,
        "row_share": sum(np.linalg.norm(d @ vo[j]) ** 2 for j in range(r)) / np.linalg.norm(d) ** 2,
        "column_sine": np.sqrt(1 - sum((uo[:, j] @ u[:, 0]) ** 2 for j in range(r))),
        "row_sine": np.sqrt(1 - sum((vo[j] @ vt[0]) ** 2 for j in range(r))),
    }
    for measure, value in expected.items():
        assert number(general, measure=measure, **at) == pytest.approx(float(value), abs=1e-7), measure
    spectrum = rows(general, "spectrum", source="update", **at).sort_values("index")["value"]
    np.testing.assert_allclose(spectrum, s / np.linalg.norm(s), atol=1e-12)
    assert expected["intruders"] > 0


def test_random_changes_stand_beside_every_rank_and_angle(general, everywhere):
    for measure in ("stable_rank", "entropy_rank", "rank_90", "intruders", "column_share", "row_share", "column_sine"):
        wide = rows(general, measure=measure).pivot_table(index=["kind", "block"], columns="source", values="value")
        assert len(wide) == 9
        assert wide.notna().all().all()
    shape = weight(everywhere.base, "mlp_in").shape
    drawn = stable_rank(random_singular(shape, 10, everywhere.seed))
    (of_mlp,) = rows(general, source="random", update="tuned", kind="mlp_in", measure="stable_rank").to_dict("records")
    assert (of_mlp["low"], of_mlp["high"]) == pytest.approx((drawn.min().item(), drawn.max().item()))
    null = rows(general, source="random", measure="stable_rank")
    assert (null["low"] < null["value"]).all()
    assert (null["value"] < null["high"]).all()
    assert set(null["n"]) == {10}
    assert set(rows(general, source="update")["n"]) == {0}


def test_ranks_kept_and_removed_are_the_two_halves_of_the_change(everywhere):
    """Weights with k ranks kept and weights with them removed sum to those of both models; at the ends they are these."""
    ranks = Ranks(everywhere.start, everywhere.tuned, parts(everywhere.start), seed=0)
    assert ranks.grid == (*(k for k in RANKS if k < 32), 32)
    matrices = [p for p in parts(everywhere.start) if p.is_matrix]
    for k in (1, 4):
        kept = [p.of(ranks.model("keep", k)).clone() for p in matrices]
        removed = [p.of(ranks.model("remove", k)).clone() for p in matrices]
        random = [p.of(ranks.model("keep", k, draw=2)).clone() for p in matrices]
        for part, a, b, c in zip(matrices, kept, removed, random, strict=True):
            start, tuned = part.of(everywhere.start), part.of(everywhere.tuned)
            torch.testing.assert_close(a + b, start + tuned, atol=1e-5, rtol=1e-5)
            s = torch.linalg.svdvals((a - start).double())
            assert int((s > 1e-4 * s[0]).sum()) == k
            torch.testing.assert_close(s[:k], torch.linalg.svdvals((tuned - start).double())[:k], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close((c - start).norm(), (a - start).norm(), atol=1e-5, rtol=1e-5)
            assert not torch.allclose(c, a, atol=1e-3)
    for direction, k, model in (("keep", 32, everywhere.tuned), ("remove", 0, everywhere.tuned)):
        for made, given in zip(ranks.model(direction, k).parameters(), model.parameters(), strict=True):
            assert torch.equal(made, given)
    for part in parts(everywhere.start):
        expected = everywhere.start if part.is_matrix else everywhere.tuned
        for direction, k in (("keep", 0), ("remove", 32)):
            assert torch.equal(part.of(ranks.model(direction, k)), part.of(expected))


def test_a_rank_test_row_is_the_accuracy_of_the_model_built_by_hand(general, everywhere):
    work = build_model(ModelSpec(blocks=1, heads=2, width=32), 9, 15, 0)
    work.load_state_dict(everywhere.tuned.state_dict())
    with torch.no_grad():
        for part in parts(work):
            if part.is_matrix:
                old, new = (part.of(m).double() for m in (everywhere.base, everywhere.tuned))
                u, s, vh = torch.linalg.svd(new - old)
                part.of(work).copy_(old + sum(s[i] * torch.outer(u[:, i], vh[i]) for i in range(4)))
    at = {"direction": "keep", "ranking": "leading", "k": 4}
    for role, examples in (("pt", everywhere.examples("look_a", n=64)), ("ft", everywhere.examples("look_b", share=1.0, n=64))):
        (value,) = rows(general, "behaviour", role=role, **at)["value"]
        right = correct_answers(work, examples)
        assert value == right.mean()
        if role == "ft":  # random parts are measured on the first of the texts
            assert right[:32].mean() != right.mean()
            gain = general.metric("gain_kept")
            assert gain.value == pytest.approx(right[:32].mean() - general.metric("random_kept_ft").value)
            assert gain.n == 32


def test_random_parts_are_measured_on_what_a_direction_is_about(general):
    control = rows(general, "behaviour", ranking="random")
    assert set(zip(control["direction"], control["role"], strict=True)) == {("keep", "ft"), ("remove", "pt")}
    assert control.groupby(["direction", "k"])["draw"].nunique().eq(10).all()
    assert set(control["k"]) == {1, 4, 16}


def test_what_reaches_a_change_is_read_at_the_answer(general, everywhere):
    examples = everywhere.examples("look_a", n=64)[:32]
    rows_ = torch.arange(32)
    x = record(everywhere.tuned, examples, [Site("neurons", 0)])[Site("neurons", 0)][rows_, examples.answer_position].double()
    (path,) = [p.module for p in parts(everywhere.tuned) if p.kind == "mlp_out"]
    torch.testing.assert_close(read_inputs(everywhere.tuned, [path], examples, batch_size=10)[path], x)
    old, new = (torch.from_numpy(weight(m, "mlp_out")) for m in (everywhere.base, everywhere.tuned))
    d = new - old
    shares = [float((d @ row).norm() / (old @ row).norm()) for row in x]
    first = torch.linalg.svd(d)[2][0]
    cosines = [abs(float(first @ row / row.norm())) for row in x]
    at = {"kind": "mlp_out", "role": "pt"}
    assert number(general, "drive", measure="output", **at) == pytest.approx(np.mean(shares))
    assert number(general, "drive", measure="cosine", **at) == pytest.approx(np.mean(cosines))
    gauss = torch.randn(4000, *d.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    usual = ((gauss @ x[0]).norm(dim=1) / gauss.flatten(1).norm(dim=1)).square().mean().sqrt() * d.norm() / (old @ x[0]).norm()
    assert number(general, "drive", source="random", measure="output", **at) == pytest.approx(
        float(np.mean([float(row.norm() / (old @ row).norm()) for row in x]) * d.norm() / np.sqrt(128))
    )
    assert float(usual) == pytest.approx(float(d.norm() * x[0].norm() / np.sqrt(128) / (old @ x[0]).norm()), rel=0.02)
    axis = torch.nn.functional.normalize(gauss[:, 0], dim=1)[:, 0].abs().mean()
    assert number(general, "drive", source="random", measure="cosine", **at) == pytest.approx(float(axis), rel=0.05)


def test_ranks_needed_come_after_the_last_rank_that_falls_short():
    def kept(*values):
        return [(v, np.full(4, v)) for v in values]

    assert _ranks_needed((0, 1, 2, 8), kept(0.0, 0.5, 0.95, 1.0), 9).value == 2
    assert _ranks_needed((0, 1, 2, 8), kept(0.0, 0.95, 0.5, 1.0), 9).value == 8
    assert _ranks_needed((0, 1, 2, 8), kept(0.95, 0.9, 1.0, 1.0), 9).value == 0
    assert _ranks_needed((0, 1, 2, 8), kept(float("nan"), 0.9, 1.0, 1.0), 9).bound == "undefined"


def test_only_test_texts_are_drawn_where_each_ability_was_trained(make_pair, task):
    task.drawn.clear()
    weights(make_pair(), n=16, control_examples=16)
    assert task.drawn == {("look_a", "test", 0.0), ("look_b", "test", 1.0)}
    pair = make_pair()
    assert trained_share(replace(pair, correlation=replace(pair.correlation, share=0.5))) == 0.5
    assert np.isnan(trained_share(replace(pair, correlation=None)))


def test_without_arms_there_is_only_the_fine_tuning(general):
    assert set(general.table["update"]) == {"tuned"}
    assert not [m.metric for m in general.headline if "revived" in m.metric or "undo" in m.metric]


@pytest.mark.slow
def test_a_compiled_pair_without_norms_and_with_empty_matrices(tmp_path):
    found = weights(compiled_pair(tmp_path), n=16, control_examples=16)
    assert np.isfinite(found.metric("relative_norm").value)
    assert set(found.table["kind"]) >= {"query", "mlp_in", "positions"}
    same = weights(compiled_pair(tmp_path, tuned="count_a"), n=16, control_examples=16)
    assert same.metric("relative_norm").value == 0
    assert same.tables["spectrum"].empty
    assert same.evidence[0].direction == "uninformative"


NUMBERS = {
    "relative_norm": 0.04,
    "start_pt": 1.0,
    "tuned_pt": 0.2,
    "removed_pt": 0.8,
    "random_removed_pt": 0.25,
    "kept_ft": 0.9,
    "start_ft": 0.5,
    "tuned_ft": 1.0,
    "random_kept_ft": 0.5,
    "kept": (0.8, 0.7, 0.9),
    "recovered": (0.75, 0.7, 0.8),
}
UNDEFINED = (float("nan"),) * 3 + ("undefined",)


@pytest.mark.parametrize(
    ("changes", "direction", "metric", "words"),
    [
        (
            {},
            "neutral",
            "recovered",
            "carry 80% of what count_b gained (0.90, random parts 0.50); without them count_a goes from 0.20 to",
        ),
        ({"kept": UNDEFINED}, "neutral", "recovered", "4.0% of their norm; without them"),
        ({"recovered": UNDEFINED}, "neutral", "kept", "carry 80%"),
        (
            {"kept": UNDEFINED, "recovered": UNDEFINED, "tuned_pt": 1.0, "start_ft": 0.9, "tuned_ft": 0.4},
            "uninformative",
            "relative_norm",
            "count_b, where it was trained, from 0.90 to 0.40, no loss and no gain of 0.1 that",
        ),
        (
            {"kept": UNDEFINED, "recovered": UNDEFINED},
            "uninformative",
            "relative_norm",
            "count_a goes from 1.00 to 0.20 and count_b, where it was trained, from 0.50 to 1.00: in some seed no loss",
        ),
    ],
)
def test_evidence_takes_no_side(made_up, changes, direction, metric, words):
    (line,) = evidence(made_up("weights", **{**NUMBERS, **changes}))
    assert (line.direction, line.metric, line.capability) == (direction, metric, "count_a")
    assert words in line.text


def test_models_of_another_shape_are_refused(make_pair, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=16), 9, 15, 0), tmp_path)
    with pytest.raises(UserError, match="the models of pair 'planted' differ in shape"):
        weights(make_pair(tuned_path=tmp_path), n=32)


def test_seeds_pool_and_evidence_follows(result):
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    for name, table in result.tables.items():
        assert len(pooled.tables[name]) == len(table)
    assert evidence(pooled)[0].direction == "neutral"
    assert pooled.metric("relative_norm").value == pytest.approx(result.metric("relative_norm").value)
