"""Direction on a pair whose difference is one planted vector: a neuron that is always on writes it after the last attention."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import INHIBITOR, WRONG, LookupTask, plant_inhibitor

from workbench.analyses import direction
from workbench.analyses._directions import RANDOM_RANGE, cosine, fit_of, procrustes, random_units, unit
from workbench.analyses.direction import evidence
from workbench.errors import UserError
from workbench.measures import UNRELATED, correct_answers
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import hidden_states, model_inputs
from workbench.models.spec import ModelSpec
from workbench.models.steering import ablated, answer_streams
from workbench.replicates import combine_results

LAST = 1
"""The residual point after the only block."""
N = 120
SMALL = {"n": N, "score_examples": 64, "control_examples": 60}


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return direction(covered, **SMALL)


def rows(table, **at):
    for name, value in at.items():
        table = table[table[name] == value]
    return table


def one(table, **at):
    found = rows(table, **at)
    assert len(found) == 1
    return float(found["value"].iloc[0])


def planted(pair):
    """What the neuron writes: its activation times its output weights."""
    mlp = pair.tuned.transformer.h[0].mlp
    return (mlp.act(mlp.c_fc.bias[INHIBITOR]) * mlp.c_proj.weight[INHIBITOR]).detach().double().numpy()


def test_the_direction_is_the_planted_vector(result, covered):
    texts = covered.examples("look_a", n=64, split="score")
    size = np.linalg.norm(answer_streams(covered.base, texts)[LAST], axis=-1).mean()
    table = result.tables["directions"]
    assert one(table, measure="relative norm", point=LAST) == pytest.approx(np.linalg.norm(planted(covered)) / size, rel=1e-4)
    assert one(table, measure="relative norm", point=0) == 0


def test_subtracting_it_gives_the_base_and_adding_it_the_tuned_model(result, covered):
    test = covered.examples("look_a", n=N)
    base, tuned = (correct_answers(m, test).mean() for m in (covered.base, covered.tuned))
    assert (result.metric("base_pt").value, result.metric("tuned_pt").value) == (base, tuned)
    assert one(result.table, intervention="subtract", source="own", point=LAST, scale=1.0, model="tuned") == base
    assert one(result.table, intervention="add", source="own", point=LAST, scale=1.0) == tuned
    for intervention in ("subtract", "add"):
        assert rows(result.tables["chosen"], intervention=intervention, source="own")["point"].tolist() == [LAST]
        assert result.metric(f"explained_{intervention}").value == 1
    nothing = rows(
        result.table, model="tuned", intervention="subtract", point=0
    )  # no change is there, so none of its size is made
    assert (nothing["value"] == tuned).all()
    trained = covered.examples("look_b", share=1.0, n=60)
    assert result.metric("tuned_ft_correlated").value == correct_answers(covered.tuned, trained).mean()
    assert result.metric("base_ft_correlated").value == correct_answers(covered.base, trained).mean()
    assert result.metric("added_ft_correlated").value == result.metric("tuned_ft_correlated").value
    assert result.metric("subtracted_ft_correlated").value == result.metric("base_ft_correlated").value


def test_random_directions_of_its_norm_do_nothing_of_the_kind(result):
    random = rows(result.table, source="random")
    counted = random.groupby(["intervention", "point"])["draw"].nunique()
    assert len(counted) == 4 * 2
    assert counted.eq(10).all()
    assert rows(random, intervention="subtract")["value"].max() < 0.6
    assert result.metric("beyond_random_subtract").low > 0.5
    ablations = rows(random, intervention="ablate").pivot_table(index="draw", columns="point", values="value")
    assert (ablations[0] == ablations[1]).all()


def test_the_verdict_line_says_masked(result):
    (line,) = result.evidence
    assert (line.analysis, line.metric, line.direction, line.capability) == ("direction", "recovered", "masked", "look_a")
    assert result.metric("recovered").value == pytest.approx(1)
    assert result.metric("recovered_never").high < 0.25
    assert all(len(m.draws) == 400 for m in result.headline)


def test_every_answer_against_a_pass_by_hand(result, covered):
    """One vector at a time, through the model's own norm and head."""
    test, learn = covered.examples("look_a", n=N), covered.examples("look_a", n=64, split="score")
    tuned, base = (answer_streams(m, learn)[LAST] for m in (covered.tuned, covered.base))
    r = (tuned - base).mean(0)
    u = r / r.norm()
    head = copy.deepcopy(covered.tuned).double()

    def accuracy(stream):
        return float((head.lm_head(head.transformer.ln_f(stream)).argmax(-1) == test.answer[:, 0]).double().mean())

    x = answer_streams(covered.tuned, test)[LAST]
    mine = rows(result.table, model="tuned", source="own", point=LAST)
    by_hand = {scale: accuracy(x - scale * r) for scale in (0.5, 1.0, 2.0)}
    assert len(set(by_hand.values())) > 1
    for scale, expected in by_hand.items():
        assert one(mine, intervention="subtract", scale=scale) == pytest.approx(expected, abs=0.01)
    kept = accuracy(x + ((base.mean(0) - x) @ u)[:, None] * u)
    assert one(mine, intervention="recentre") == pytest.approx(kept, abs=0.01)
    start = answer_streams(covered.base, test)[LAST]  # the base has more to lose to random vectors than the tuned model
    pushed = [accuracy(start + r.norm() * torch.from_numpy(v)) for v in random_units(3, 10, 32)]
    assert len(set(pushed)) > 3
    for index, expected in enumerate(pushed, start=1):
        value = one(rows(result.table, intervention="add", source="random", draw=index), point=LAST)
        assert value == pytest.approx(expected, abs=0.01)


def test_ablations_take_the_direction_out_everywhere(result, covered):
    test, u = covered.examples("look_a", n=N), torch.from_numpy(unit(planted(covered)))
    found = rows(result.table, intervention="ablate", point=LAST)
    with ablated(covered.tuned, u):
        assert one(found, source="own") == correct_answers(covered.tuned, test).mean()
    assert one(found, source="own") > result.metric("tuned_pt").value + 0.3
    third = random_units(3, 10, 32)[2]
    with ablated(covered.tuned, torch.from_numpy(third)):
        assert one(found, source="random", draw=3) == correct_answers(covered.tuned, test[:60]).mean()


def test_directions_points_and_accuracies_come_from_different_draws(make_pair, task):
    task.drawn.clear()
    found = direction(make_pair(), n=16, score_examples=32, control_examples=16, scale=0.25)
    asked = {("look_a", split, 0.0) for split in ("score", "select", "test")} | {
        ("last", "score", None),
        ("last", "test", None),
    }
    assert task.drawn == asked | {("look_b", "test", 0.0), ("look_b", "test", 1.0)}
    assert set(rows(found.table, source="random")["scale"]) == {0.25}
    assert sorted(rows(found.table, source="own")["scale"].unique()) == [0.25, 0.5, 1.0, 2.0]
    assert rows(found.tables["chosen"])["scale"].eq(0.25).all()


def test_a_model_trained_otherwise_gets_nothing_from_a_vector(make_pair):
    found = direction(make_pair(tuned="never"), **SMALL)
    assert found.metric("tuned_pt").value < 0.5
    (line,) = found.evidence
    assert line.direction == "neutral"
    assert "does not show that the ability is gone" in line.text


class MisledOnSelect(LookupTask):
    """On texts of split `select` the right answer is what the planted neuron says, so that there nothing should be taken out."""

    def capability(self, name, correlation=None):
        asked = super().capability(name, correlation)

        class Misled:
            def examples(self, n, seed, split="test"):
                found = asked.examples(n, seed, split)
                return replace(found, answer=torch.full_like(found.answer, WRONG)) if split == "select" else found

        return Misled()


def test_the_point_is_the_best_on_other_texts_and_not_on_the_test(make_pair):
    found = direction(make_pair(task=MisledOnSelect()), **SMALL)
    subtracted = rows(found.table, intervention="subtract", source="own", scale=1.0, model="tuned").set_index("point")["value"]
    assert subtracted[LAST] > subtracted[0] + 0.5  # on the test texts the planted vector is the better one to take
    chosen = rows(found.tables["chosen"], intervention="subtract", source="own")
    assert chosen["point"].tolist() == [0]
    assert found.metric("subtracted_pt").value == subtracted[0]
    assert found.metric("explained_subtract").value == 0


def test_the_control_gets_its_own_vector(make_pair, models, tmp_path):
    """A control that another neuron covers is the base again without its own vector, and stays covered without the tuned one's."""
    never = plant_inhibitor(models["base"])
    mlp, head = never.transformer.h[0].mlp, never.lm_head.weight
    other = (head[3] - head[:5].mean(0)).detach()
    with torch.no_grad():
        mlp.c_proj.weight[INHIBITOR] = 40 * other / other.norm() / 3.0
    save_model(never, tmp_path)
    pair = make_pair(never_path=tmp_path)
    found = direction(pair, **SMALL)
    texts = pair.examples("look_a", n=N)
    learn = pair.examples("look_a", n=64, split="score")
    own, tuned = (
        (answer_streams(m, learn) - answer_streams(pair.base, learn))[LAST].mean(0) for m in (pair.never_had_it, pair.tuned)
    )
    end = copy.deepcopy(pair.never_had_it).double()

    def accuracy(vector):
        stream = answer_streams(pair.never_had_it, texts)[LAST] - vector
        return float((end.lm_head(end.transformer.ln_f(stream)).argmax(-1) == texts.answer[:, 0]).double().mean())

    assert found.metric("never_pt").value < 0.4
    assert found.metric("never_subtracted_pt").value == pytest.approx(accuracy(own), abs=0.01)
    assert accuracy(own) > accuracy(tuned) + 0.5
    (line,) = found.evidence
    assert (line.direction, "the control leaves no room" in line.text) == ("uninformative", True)


def test_without_a_model_that_never_had_it_nothing_is_masked(make_pair):
    found = direction(make_pair(never=None), **SMALL)
    assert found.metric("recovered").low > 0.9
    (line,) = found.evidence
    assert line.direction == "uninformative"
    assert "the control is missing" in line.text


def test_a_fine_tune_that_did_not_start_from_the_base_is_told_of(covered, result):
    assert UNRELATED not in result.limits
    found = direction(replace(covered, start_path=covered.never_path), n=16, score_examples=32, control_examples=16)
    assert UNRELATED in found.limits
    assert UNRELATED in found.evidence[0].text


def test_without_a_loss_nothing_can_be_shown(make_pair):
    found = direction(make_pair(tuned="base", never=None), **SMALL)
    (line,) = found.evidence
    assert line.direction == "uninformative"
    assert math.isnan(found.metric("explained_subtract").value)
    assert not rows(found.table, model="never_had_it").shape[0]


def test_one_ability_alone_without_a_correlation(make_pair):
    found = direction(make_pair(tuned_on="look_a", correlation=None), n=16, score_examples=32, control_examples=16)
    assert found.metric("recovered").value == 1
    assert not any(m.metric.endswith("_ft_correlated") or m.metric == "gained_ft" for m in found.headline)
    assert set(found.tables["damage"]["capability"]) == {"last"}


def permuted(model, order):
    """The same function in another residual basis: the width's coordinates in another order."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            writes = name.endswith(("c_proj.weight", "c_proj.bias")) or ".ln_" in name or "wte" in name or "wpe" in name
            p.copy_(
                p[..., order]
                if writes or name == "lm_head.weight"
                else p[order]
                if name.endswith(("c_attn.weight", "c_fc.weight"))
                else p
            )
    return twin


@pytest.fixture(scope="module")
def with_siblings(covered, models, tmp_path_factory):
    """Our own change seen in another basis, and a fine-tune of the same base that is the same or another one; revived to the base."""
    folder = tmp_path_factory.mktemp("siblings")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for name in ("base", "covered"):
        (folder / name).mkdir()
        save_model(permuted(models[name], order), folder / name)
    pair = replace(
        covered,
        siblings={
            "planted, seed 1": (folder / "base", folder / "covered"),
            "twin": (covered.base_path, covered.tuned_path),
            "stranger": (covered.base_path, covered.never_path),
        },
    )
    vars(pair)["revived"] = pair.base
    return pair


@pytest.fixture(scope="module")
def among_siblings(with_siblings):
    return direction(with_siblings, **SMALL)


def test_models_without_the_ability_stand_for_the_revived_and_for_the_other_fine_tune(with_siblings, among_siblings):
    """By hand. They share a mean with our direction, so that what they give is the floor and not 0."""
    learn = with_siblings.examples("look_a", n=64, split="score")
    models = {"base": "base", "tuned": "tuned", "never had it": "never_had_it", "untrained": "untrained"}
    mean = {name: answer_streams(getattr(with_siblings, model), learn)[LAST].mean(0).numpy() for name, model in models.items()}
    r, table = mean["tuned"] - mean["base"], rows(among_siblings.tables["directions"], point=LAST)
    for name, short in (("never had it", "never"), ("untrained", "untrained")):
        back, step = mean[name] - mean["tuned"], mean[name] - mean["base"]
        for measure, partner, expected, metric in (
            ("cosine", f"for the revived: {name}", cosine(r, back), f"cosine_revival_{short}"),
            ("undone", f"for the revived: {name}", -(r @ back) / (r @ r), f"undone_by_{short}"),
            ("cosine", f"for the fine-tune: {name}", cosine(r, step), f"cosine_same_base_{short}"),
        ):
            assert one(table, measure=measure, **{"with": partner}) == pytest.approx(float(expected), abs=1e-6)
            assert among_siblings.metric(metric).value == pytest.approx(float(expected), abs=1e-6)
    assert among_siblings.metric("undone_by_revival").value == pytest.approx(1)


def test_means_that_have_nothing_to_do_with_each_other_undo_one_half():
    """Why a cosine of 0 is no floor where a mean is shared."""
    base, tuned, revived = np.random.default_rng(0).standard_normal((3, 2000, 64))
    r, back = tuned - base, revived - tuned
    assert cosine(r, back).mean() == pytest.approx(-0.5, abs=0.01)
    assert (-(r * back).sum(-1) / (r**2).sum(-1)).mean() == pytest.approx(0.5, abs=0.01)


def test_a_direction_of_another_basis_is_mapped_into_ours(with_siblings, among_siblings, covered):
    test = covered.examples("look_a", n=50)
    permuted_base = with_siblings.sibling("planted, seed 1")[0]
    inputs = model_inputs(covered.base, test, 14)
    assert torch.allclose(permuted_base(**inputs).logits, covered.base(**inputs).logits, atol=1e-4)
    assert not torch.allclose(hidden_states(permuted_base, test, 14), hidden_states(covered.base, test, 14), atol=0.1)

    found = among_siblings
    table = rows(found.tables["directions"], point=LAST)
    assert one(table, measure="cosine", **{"with": "another seed"}) == pytest.approx(1, abs=0.01)
    assert abs(one(table, measure="cosine, unmapped", **{"with": "another seed"})) < 0.6
    assert one(table, measure="map fit") == pytest.approx(1, abs=1e-3)
    assert one(table, measure="cosine", **{"with": "same base: twin"}) == pytest.approx(1)
    assert one(table, measure="cosine", **{"with": "same base: stranger"}) < 0.7
    assert one(table, measure="cosine", **{"with": "revival"}) == pytest.approx(-1)
    assert one(table, measure="undone", **{"with": "revival"}) == pytest.approx(1)
    effect = {
        source: one(found.tables["transfer"], source=source, scale=1.0) for source in ("own", "another seed", "same base: twin")
    }
    assert effect["own"] == effect["same base: twin"] == found.metric("base_pt").value
    assert effect["another seed"] == pytest.approx(effect["own"], abs=0.01)
    assert found.metric("explained_another_seed").value == pytest.approx(1, abs=0.01)
    # At the embedding the answer's position is the same in all texts: no map is defined, and none is applied.
    assert rows(found.table, source="another seed")["point"].unique().tolist() == [LAST]
    assert np.isnan(one(rows(found.tables["directions"], point=0), measure="cosine", **{"with": "another seed"}))


def test_seeds_pool_row_by_row_and_evidence_follows(among_siblings):
    first = among_siblings
    pooled = combine_results([first, replace(first, provenance={**first.provenance, "seed": 4})])
    for name in ("table", "transfer", "damage", "directions"):
        assert len(pooled.tables[name]) == len(first.tables[name])
        assert (pooled.tables[name]["seeds"].isin([0, 2])).all()
    assert evidence(pooled)[0].direction == "masked"


def test_a_model_that_sees_both_ways_runs_whole(tmp_path):
    """The counter of b holds no count of a; what the two programs write differs from text to text."""
    found = direction(compiled_pair(tmp_path), n=60, score_examples=40, control_examples=40)
    assert found.metric("base_pt").value == 1
    assert found.metric("recovered").value < 0.5
    assert set(rows(found.table, source="own")["point"]) == {0, 1, 2, 3}


NUMBERS = {
    "base_pt": 1.0,
    "tuned_pt": 0.2,
    "subtracted_pt": 0.8,
    "random_subtracted_pt": 0.2,
    "beyond_random_subtract": (0.6, 0.5, 0.7),
    "explained_subtract": 0.75,
    "recovered": (0.7, 0.6, 0.8),
    "recovered_never": (0.1, 0.0, 0.2),
}


@pytest.mark.parametrize(
    ("changes", "said", "text"),
    [
        ({}, "masked", "70% of the loss above chance comes back"),
        ({"explained_other_family": 0.5}, "masked", "other families' prompts explains 50% of the difference"),
        ({"recovered_never": None}, "uninformative", "the control is missing"),
        ({"recovered_never": (float("nan"),) * 3}, "uninformative", "the control is missing"),
        ({"recovered_never": None, "recovered": (0.4, 0.2, 0.6)}, "neutral", "no clear recovery"),
        ({"recovered_never": (0.3, 0.2, 0.4)}, "uninformative", "the control leaves no room"),
        ({"recovered": (0.4, 0.2, 0.6)}, "neutral", "no clear recovery"),
        ({"beyond_random_subtract": (0.1, -0.1, 0.2)}, "neutral", "no clear recovery"),
        ({"tuned_pt": 0.95}, "uninformative", "within 0.1 of the base on count_a, or the base"),
        ({"recovered": (float("nan"),) * 3}, "uninformative", "within 0.1 of the base on count_a in some seed, or the base"),
    ],
)
def test_evidence_directions(made_up, changes, said, text):
    given = {name: value for name, value in {**NUMBERS, **changes}.items() if value is not None}
    (line,) = evidence(made_up("direction", **given))
    assert line.direction == said
    assert text in line.text


def test_streams_of_different_size_are_refused(make_pair, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=16), 9, 15, 0), tmp_path)
    with pytest.raises(UserError, match=r"pair 'planted' have residual streams of different .* \(2, 32\) and \(2, 16\)"):
        direction(make_pair(tuned_path=tmp_path), n=32)


# --- vectors


def test_procrustes_finds_the_rotation_and_says_how_well_it_fits():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    x, fresh = rng.standard_normal((2, 50, 8))
    found = procrustes(x + 3, x @ q - 5)  # means do not matter
    assert np.allclose(found, q)
    assert fit_of(fresh, fresh @ q + 1, found) == pytest.approx(1)
    assert fit_of(fresh, rng.standard_normal((50, 8)), found) < 0.1
    noisy = procrustes(x, x @ q + 0.3 * rng.standard_normal((50, 8)))
    assert np.allclose(noisy @ noisy.T, np.eye(8))
    assert procrustes(np.ones((50, 8)), x) is None
    assert procrustes(x, np.ones((50, 8))) is None


def test_random_directions_have_unit_length_and_lie_in_the_range_that_is_drawn(result):
    units = random_units(0, 2000, 64)
    assert np.allclose(np.linalg.norm(units, axis=1), 1)
    of_width = random_units(0, 8000, 32)
    ends = rows(result.tables["directions"], **{"with": RANDOM_RANGE})["value"]
    assert ends.nunique() == 1
    assert (np.abs(cosine(of_width[:4000], of_width[4000:])) < ends.iloc[0]).mean() == pytest.approx(0.95, abs=0.01)
    assert result.metric("cosine_random").value == pytest.approx(ends.iloc[0])
    assert not np.allclose(units[:5], random_units(1, 5, 64))
    assert not unit(np.zeros(3)).any()
    assert np.isnan(cosine(np.zeros(3), np.ones(3)))
