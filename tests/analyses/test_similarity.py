"""Similarity against Gram matrices written out, SciPy, resampling done in full, and models whose change is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import FakeRun
from scipy.linalg import orthogonal_procrustes

from workbench.analyses import similarity
from workbench.analyses._similarity import MEASURES, biased_cka, centred, cka, procrustes, unbiased_hsic
from workbench.analyses.similarity import COMPARED, SHUFFLES, evidence
from workbench.errors import UserError
from workbench.measures import correct_answers
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.lens import residual_streams
from workbench.models.spec import ModelSpec
from workbench.replicates import combine_results
from workbench.runs import Checkpoint
from workbench.subjects import Trajectory

RNG = np.random.default_rng


def related(n=60, d=6, e=5, seed=0):
    """Two representations that share three directions of uneven size."""
    rng = RNG(seed)
    x = rng.normal(size=(n, d)) * np.array([3, 2, 1, 1, 0.5, 0.2])[:d]
    return x, x[:, :3] @ RNG(9).normal(size=(3, e)) + rng.normal(size=(n, e))


def rotation(d, seed=1):
    return np.linalg.qr(RNG(seed).normal(size=(d, d)))[0]


def naive_hsic(x, y):
    """Song+12 eq. 5 with its matrices."""
    n, one = len(x), np.ones(len(x))
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return (np.trace(k @ m) + sums) / (n * (n - 3))


def u_centred(x):
    """The Gram matrix as a point of a Hilbert space [Szekely & Rizzo 2014]."""
    n, k = len(x), x @ x.T
    np.fill_diagonal(k, 0)
    rows = k.sum(0) / (n - 2)
    out = k - rows - rows[:, None] + k.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0)
    return out


def test_hsic_is_that_of_the_gram_matrices_with_and_without_each_text():
    x, y = related()
    whole, less = unbiased_hsic(centred(x), centred(y))
    assert whole == pytest.approx(naive_hsic(x, y), rel=1e-10)
    assert less == pytest.approx([naive_hsic(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(len(x))], rel=1e-10)


def test_cka_is_the_cosine_of_u_centred_gram_matrices():
    x, y = related()
    a, b = u_centred(x), u_centred(y)
    assert cka(centred(x), centred(y)).value == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), rel=1e-10)


def test_biased_cka_is_that_of_centred_gram_matrices():
    x, y = related()
    centring = np.eye(len(x)) - 1 / len(x)
    k, m = (centring @ z @ z.T @ centring for z in (x, y))
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert biased_cka(centred(x), centred(y)) == pytest.approx(expected, rel=1e-10)


def test_procrustes_is_what_scipy_leaves_after_the_best_rotation():
    x, y = (z / np.linalg.norm(z) for z in (centred(related(e=6)[0]), centred(related(e=6)[1])))
    turn, _ = orthogonal_procrustes(x, y)
    assert procrustes(x, y).value == pytest.approx(1 - np.linalg.norm(x @ turn - y) ** 2 / 2, rel=1e-10)


@pytest.mark.parametrize("measure", MEASURES.values())
def test_a_rotated_scaled_and_shifted_copy_is_the_same(measure):
    x, _ = related()
    found = measure(centred(x), centred(3 * x @ rotation(6) + 7))
    assert found.value == pytest.approx(1, abs=1e-12)
    assert np.sqrt(max(0.0, 2 - 2 * found.value)) < 1e-6  # the distance after the best rotation
    assert found.influence == pytest.approx(0, abs=1e-9)


def test_of_independent_rows_unbiased_cka_is_zero_and_the_others_are_what_n_makes_of_them():
    d, values = 20, {}
    for n in (100, 400):
        draws = [(centred(RNG(s).normal(size=(n, d))), centred(RNG(s + 500).normal(size=(n, d)))) for s in range(60)]
        values[n] = np.mean([(cka(x, y).value, biased_cka(x, y), procrustes(x, y).value) for x, y in draws], axis=0)
    for n in values:
        assert values[n][0] == pytest.approx(0, abs=0.004)
        assert values[n][1] == pytest.approx(d / (n + d), rel=0.05)
    assert values[100][2] / values[400][2] == pytest.approx(2, rel=0.1)  # sqrt(width / n)
    # The singular values of such a product fill a quarter circle of radius 2 sqrt(n d), whose mean is 8 / (3 pi) of sqrt(n d).
    assert values[400][2] == pytest.approx(8 / (3 * np.pi) * np.sqrt(d / 400), rel=0.06)


@pytest.mark.parametrize("name", list(MEASURES))
def test_first_order_bootstrap_has_the_width_of_the_true_one(name):
    measure, n = MEASURES[name], 300
    x, y = related(n)
    found, rng, full = measure(centred(x), centred(y)), RNG(3), []
    for _ in range(400):
        rows = rng.integers(0, n, n)
        full.append(measure(centred(x[rows]), centred(y[rows])).value)
    assert found.influence.mean() == pytest.approx(0, abs=1e-10)
    assert found.influence.std() / np.sqrt(n) == pytest.approx(np.std(full), rel=0.12)


def test_influence_of_procrustes_is_its_derivative_by_a_texts_weight():
    x, y = related(30)
    found, step = procrustes(centred(x), centred(y)), 1e-5

    def weighted(w):
        a, b = (z - (w[:, None] * z).sum(0) / w.sum() for z in (x, y))
        a, b = (np.sqrt(w)[:, None] * z for z in (a, b))
        return np.linalg.svd(a.T @ b, compute_uv=False).sum() / np.linalg.norm(a) / np.linalg.norm(b)

    for i in (0, 7, 29):
        up, down = (np.ones(30) + s * step * (np.arange(30) == i) for s in (1, -1))
        assert found.influence[i] / 30 == pytest.approx((weighted(up) - weighted(down)) / (2 * step), rel=1e-5)


def test_what_does_not_vary_is_like_nothing():
    x, _ = related()
    constant = np.full((60, 4), 0.1) * (1 + 1e-12 * RNG(0).normal(size=(60, 4)))
    for measure in MEASURES.values():
        assert np.isnan(measure(centred(x), centred(constant)).value)
    assert np.isnan(biased_cka(centred(x), centred(constant)))


# On models.


@pytest.fixture(scope="module")
def other(make_pair):
    """Base against a model that was trained apart from it."""
    return make_pair(tuned="never")


@pytest.fixture(scope="module")
def result(other):
    return similarity(other, n=120, text_positions=4)


def cell(result, table="table", **at):
    rows = result.tables[table]
    for name, value in at.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, at
    return rows.iloc[0]


def test_a_cell_is_the_measure_of_the_lens_streams(result, other):
    """TransformerLens reads the same streams, and NumPy the same number."""
    examples = other.examples("look_b", n=120)
    at = (
        1
        + 11
        - int(cell(result, measure="cka", comparison="base-tuned", role="ft", point=1, part="window", place="0")["place"])
    )
    streams = [
        residual_streams(m, examples, positions=torch.tensor([at]))[1, :, 0].double().numpy() for m in (other.base, other.tuned)
    ]
    row = cell(result, measure="cka", comparison="base-tuned", role="ft", point=1, place="0")
    assert row["value"] == pytest.approx(cka(*(centred(s) for s in streams)).value, abs=1e-5)
    # With tuned = never, base-never_had_it compares the same two models.
    assert cell(result, measure="cka", comparison="base-never_had_it", role="ft", point=1, place="0")["value"] == row["value"]
    assert row["low"] < row["value"] < row["high"] <= 1
    assert (row["n"], row["unit"]) == (120, "similarity")


def test_all_comparisons_of_models_that_there_are_with_floor_and_ceiling(result):
    names = {f"{a}-{b}" for a, b in COMPARED if not {"revived", "another_seed"} & {a, b}} | {"shuffled"}
    per = result.table.groupby(["role", "measure", "point", "place"])["comparison"].agg(set)
    assert (per == names).all()
    assert set(result.table["role"]) == {"pt", "ft"}
    floor = result.table[result.table["comparison"] == "shuffled"].dropna()
    assert floor[floor["measure"] == "cka"]["value"].abs().max() < 0.06
    assert floor[floor["measure"] == "procrustes"]["value"].min() > 0.1
    # Where the base's stream is the same on all texts there is nothing to compare; the token that asks is such a place ...
    request = result.table[(result.table["place"] == "request") & (result.table["point"] == 0)]
    assert request["value"].isna().all()
    # ... until attention has brought the text there.
    assert result.table[(result.table["place"] == "request") & (result.table["point"] == 1)]["value"].notna().all()


def test_headline_is_the_last_stream_where_o_pt_is_answered(result, other):
    for name in ("base_tuned", "base_never_had_it", "base_untrained"):
        row = cell(result, measure="cka", comparison=name.replace("_", "-", 1), role="pt", point=1, place="request")
        found = result.metric(f"cka_{name}")
        assert (found.value, found.low, found.high) == pytest.approx((row["value"], row["low"], row["high"]))
    assert {m.metric for m in result.headline if m.metric.endswith("_back")} == set()
    assert result.metric("tuned_pt").value == correct_answers(other.tuned, other.examples("look_a", n=120)).mean()
    assert result.metric("cka_base_tuned").value < 0.9
    assert abs(result.metric("cka_shuffled").value) < 0.05


def test_an_offset_that_hides_the_ability_is_invisible(make_pair):
    """The planted inhibitor adds one vector to every text: accuracy is gone, and yet the streams are the same but for their mean."""
    result = similarity(make_pair(), n=64, text_positions=2)
    assert result.metric("base_pt").value - result.metric("tuned_pt").value > 0.5
    for measure in MEASURES:
        assert result.metric(f"{measure}_base_tuned").value == pytest.approx(1, abs=1e-6)
    assert any("same on all texts" in limit for limit in result.limits)


def arm(model, folder):
    """A training that ended in this model."""
    save_model(model, folder)

    class Ended(FakeRun):
        def checkpoint(self, step=None):
            return Checkpoint(0, folder)

    return Trajectory(Ended(folder, "study", "stage", "0" * 10))


def test_what_came_back_is_the_difference_on_the_same_texts(make_pair, models, tmp_path):
    """An arm that ends in the base itself."""
    pair = make_pair(tuned="never", arms={"revived": arm(models["base"], tmp_path)})
    result = similarity(pair, n=64, text_positions=2)
    assert result.metric("cka_base_revived").value == pytest.approx(1, abs=1e-9)
    assert cell(result, measure="cka", comparison="tuned-revived", role="pt", point=1, place="request")[
        "value"
    ] == pytest.approx(result.metric("cka_base_tuned").value)
    tuned, back = result.metric("cka_base_tuned"), result.metric("cka_back")
    assert back.value == pytest.approx(1 - tuned.value)
    assert (back.low, back.high) == pytest.approx((1 - tuned.high, 1 - tuned.low), abs=1e-5)


def test_the_ceiling_is_the_base_of_another_seed(make_pair, other, result):
    """Of the siblings the one with another base; here it is the model that the control is."""
    pair = make_pair()
    siblings = {"learned": (pair.base_path, other.tuned_path), "planted, seed 1": (pair.never_path, pair.never_path)}
    found = similarity(replace(other, siblings=siblings), n=120, text_positions=4)
    for measure in MEASURES:
        assert found.metric(f"{measure}_base_another_seed") == replace(
            result.metric(f"{measure}_base_never_had_it"), metric=f"{measure}_base_another_seed"
        )
    assert "the base of another seed" in evidence(found)[0].text or "no loss" in evidence(found)[0].text
    same = similarity(replace(other, siblings={"learned": siblings["learned"]}), n=32, text_positions=1)
    assert "base-another_seed" not in set(same.table["comparison"])


def test_sizes_show_what_n_does_to_the_biased_estimator(result):
    sizes = result.tables["sizes"]
    assert sorted(set(sizes["texts"])) == [32, 64, 120]
    by = sizes.pivot(index="texts", columns=["comparison", "estimator"], values="value")
    assert all(a > b for a, b in pairwise(by["shuffled", "biased"]))
    assert by["shuffled", "unbiased"].abs().max() < 0.04 < by["shuffled", "biased"][32]
    assert by["base-tuned", "unbiased"][120] == pytest.approx(result.metric("cka_base_tuned").value)


def test_a_bidirectional_compiled_pair(tmp_path):
    same = similarity(compiled_pair(tmp_path, tuned="count_a"), n=32, text_positions=3)
    rows = same.table[(same.table["comparison"] == "base-tuned")]["value"].dropna()
    assert len(rows) > 10
    assert rows.to_numpy() == pytest.approx(1, abs=1e-9)
    (line,) = same.evidence
    assert (line.direction, "no loss to compare" in line.text) == ("uninformative", True)


def test_models_of_unequal_depth_are_refused(make_pair, tmp_path):
    deeper = build_model(ModelSpec(kind="gpt2", blocks=2, heads=2, width=32), 9, 15, 0)
    save_model(deeper, tmp_path)
    with pytest.raises(UserError, match=r"differ in their number of blocks \(base 1, tuned 2"):
        similarity(make_pair(tuned_path=tmp_path), n=32)


def test_seeds_are_pooled_row_by_row(result, other):
    second = similarity(replace(other, seed=4), n=120, text_positions=4)
    pooled = combine_results([result, second])
    at = {"measure": "procrustes", "comparison": "base-untrained", "role": "pt", "point": 1, "place": "0"}
    assert cell(pooled, **at)["value"] == pytest.approx(np.mean([cell(r, **at)["value"] for r in (result, second)]))
    assert len(pooled.table) == len(result.table)
    assert len(pooled.tables["sizes"]) == len(result.tables["sizes"])
    assert evidence(pooled)[0].n == 120


NUMBERS = {
    "cka_base_tuned": (0.6, 0.5, 0.7),
    "cka_base_revived": 0.9,
    "cka_base_untrained": 0.2,
    "base_pt": 0.99,
    "tuned_pt": 0.2,
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        (
            {},
            "neutral",
            "CKA 0.60 with the base's (revived 0.90, random weights 0.20), while its accuracy went from 0.99 to 0.20",
        ),
        ({"tuned_pt": 0.95}, "uninformative", "no loss to compare it with"),
        ({"cka_base_untrained": 0.95}, "uninformative", "no room to say anything"),
        ({"cka_base_tuned": 0.1}, "neutral", "not whether the ability survived"),
    ],
)
def test_evidence(made_up, changes, direction, words):
    (line,) = evidence(made_up("similarity", **{**NUMBERS, **changes}))
    assert (line.direction, line.metric, line.capability) == (direction, "cka_base_tuned", "count_a")
    assert words in line.text


def test_shuffled_texts_never_meet_themselves():
    from workbench.analyses.similarity import _deranged

    for seed in range(5):
        order = _deranged(7, RNG(seed))
        assert sorted(order) == list(range(7))
        assert not (order == np.arange(7)).any()
    assert SHUFFLES >= 10
