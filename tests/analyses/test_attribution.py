"""Direct logit attribution where the change is planted in one component."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.planted import covered, deepened, pair_of

from workbench.analyses import attribution
from workbench.analyses.attribution import _best_wrong, _wrong, evidence
from workbench.figures.tables import select
from workbench.models.checkpoints import save_model
from workbench.models.forward import answer_logits
from workbench.models.readout import attribute
from workbench.replicates import combine_results

QUICK = {"n": 100, "select_examples": 50}
PUSH = 3.0


@pytest.fixture(scope="module")
def masked(make_pair, models, tmp_path_factory):
    """The second block's MLP covers the answer."""
    base = deepened(models["base"])
    return pair_of(make_pair, tmp_path_factory.mktemp("masked"), base=base, tuned=covered(base), revived=base)


@pytest.fixture(scope="module")
def result(masked):
    return attribution(masked, **QUICK)


def value(result, **at):
    rows = select(result.table, **at)
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def logits_at_answer(model, examples):
    with torch.no_grad():
        return answer_logits(model, examples)[:, 0].double()


def test_every_part_of_every_model_and_their_sum(result):
    parts = [f"head {b}.{h}" for b in (0, 1) for h in (0, 1)]
    parts += [f"{kind} {b}" for b in (0, 1) for kind in ("attention bias", "mlp")]
    for _, rows in result.table.groupby("model"):
        assert set(rows["part"]) == {*parts, "embedding", "final norm bias", "all"}
        assert rows.set_index("part")["value"].drop("all").sum() == pytest.approx(
            value(result, model=rows["model"].iloc[0], part="all")
        )
    assert set(result.table["model"]) == {"base", "tuned", "revived", "change", "change of revived"}
    head = select(result.table, model="base", part="head 1.0").iloc[0]
    assert (head["kind"], head["block"], head["head"], head["unit"], head["n"]) == ("head", 1, 0, "logits", 100)


def test_the_sum_is_the_logit_difference_to_the_tuned_models_best_wrong_answer(result, masked):
    examples = masked.examples("look_a", n=100)
    tuned = logits_at_answer(masked.tuned, examples)
    rival = [
        max((c for c in range(5) if c != a), key=lambda c: tuned[i, c].item()) for i, a in enumerate(examples.answer[:, 0])
    ]
    rows = torch.arange(100)
    for name, model in (("base", masked.base), ("tuned", masked.tuned)):
        logits = logits_at_answer(model, examples)
        difference = logits[rows, examples.answer[:, 0]] - logits[rows, torch.tensor(rival)]
        assert value(result, model=name, part="all") == pytest.approx(difference.mean().item(), abs=1e-4)
        assert result.metric(f"{name}_difference").value == pytest.approx(difference.mean().item(), abs=1e-4)
        if name == "tuned":
            right = tuned[:, :5].argmax(1) == examples.answer[:, 0]
            assert torch.equal(difference > 0, right)  # whence the name rival


def test_the_mean_of_the_others_is_a_rival_that_no_model_chooses(masked):
    found = attribution(masked, rival="others", **QUICK)
    examples = masked.examples("look_a", n=100)
    logits = logits_at_answer(masked.tuned, examples)[:, :5]
    rows = torch.arange(100)
    own = logits[rows, examples.answer[:, 0]]
    expected = (own - (logits.sum(1) - own) / 4).mean().item()
    assert found.metric("tuned_difference").value == pytest.approx(expected, abs=1e-4)


def test_the_planted_component_is_found(result):
    assert result.tables["chosen"]["part"].tolist() == ["mlp 1"]
    found = {m.metric: m for m in result.headline}
    assert found["base_pt"].value > 0.97
    assert found["tuned_pt"].value < 0.4
    assert found["change"].value == pytest.approx(found["tuned_difference"].value - found["base_difference"].value)
    assert found["change_chosen"].value == pytest.approx(
        value(result, model="tuned", part="mlp 1")
    )  # the base's writes nothing
    assert found["explained"].value == pytest.approx(found["change_chosen"].value / found["change"].value)
    assert found["explained_evenly"].value == pytest.approx(1 / 10)
    sizes = select(result.table, model="change")
    sizes = sizes.loc[sizes["part"] != "all", "value"].abs()
    assert found["concentration"].value == pytest.approx(sizes.max() / sizes.sum())
    assert all(len(m.draws) == 400 for m in result.headline)
    (line,) = result.evidence
    assert (line.direction, line.metric, line.capability) == ("neutral", "explained", "look_a")


def test_a_revived_model_is_held_against_the_base(result):
    assert not select(result.table, model="change of revived")["value"].any()
    assert result.metric("revived_difference").value == result.metric("base_difference").value


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A compiled counter, and one whose last MLP adds a constant that pushes towards the first candidate. There is no norm."""
    folder = tmp_path_factory.mktemp("pushed")
    pair = compiled_pair(folder, tuned="count_a")
    first = int(pair.examples("count_a", n=1).candidates[0])
    model, table = copy.deepcopy(pair.base), pair.base.get_output_embeddings().weight
    with torch.no_grad():
        model.model.blocks[-1].mlp.output.bias += PUSH * table[first] / table[first].square().sum()
    (folder / "pushed").mkdir()
    save_model(model, folder / "pushed")
    return replace(pair, tuned_path=folder / "pushed"), first


def test_a_constant_in_one_mlp_explains_all_and_exactly(pushed):
    pair, first = pushed
    found = attribution(pair, n=60, select_examples=30)
    change = select(found.table, model="change").set_index("part")["value"]
    chosen = found.tables["chosen"]["part"].iloc[0]
    assert chosen == "mlp 2"
    assert change.drop([chosen, "all"]).abs().max() < 1e-4
    assert found.metric("explained").value == pytest.approx(1, abs=1e-4)
    assert found.metric("concentration").value == pytest.approx(1, abs=1e-4)
    examples = pair.examples("count_a", n=60)
    base, tuned = (logits_at_answer(m, examples) for m in (pair.base, pair.tuned))
    assert torch.allclose((tuned - base)[:, first], torch.tensor(PUSH, dtype=torch.float64), atol=1e-4)
    assert not any(p.startswith("final norm") for p in change.index)


def test_the_component_is_chosen_on_texts_of_its_own(masked, task):
    task.drawn.clear()
    attribution(masked, n=16, select_examples=16)
    assert task.drawn == {("look_a", "test", 0.0), ("look_a", "select", 0.0)}


def test_rivals_are_wrong_candidates(masked):
    examples = masked.examples("look_a", n=50)
    assert (_best_wrong(masked.tuned, examples) != examples.answer).all()
    others = _wrong(examples)
    assert [sorted([*row, a]) for row, a in zip(others.tolist(), examples.answer[:, 0].tolist(), strict=True)] == [
        [0, 1, 2, 3, 4]
    ] * 50
    assert torch.equal(
        attribute(masked.base, examples, examples.answer, others, batch_size=7).difference.isnan(), torch.zeros(50) > 0
    )


def test_equal_models_have_nothing_to_explain(make_pair):
    found = attribution(make_pair(tuned="base"), **QUICK)
    assert np.isnan(found.metric("explained").value)
    assert found.metric("change").value == 0
    (line,) = found.evidence
    assert (line.direction, line.metric) == ("uninformative", "change_pt")


def test_models_that_do_not_descend_from_one_another_are_told_of(make_pair, result):
    pair = make_pair(tuned="never")
    assert not any("did not start from the base" in limit for limit in attribution(pair, **QUICK).limits)
    elsewhere = replace(pair, start_path=pair.never_path)
    assert any("did not start from the base" in limit for limit in attribution(elsewhere, **QUICK).limits)


NUMBERS = {
    "base_difference": 5.0,
    "tuned_difference": -5.0,
    "explained": (0.6, 0.5, 0.7),
    "explained_evenly": 0.1,
    "concentration": 0.5,
    "change_pt": (-0.8, -0.85, -0.75),
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        ({}, "neutral", "from 5.0 to -5.0; the component that changed most makes up 60% of that directly"),
        ({"change_pt": (-0.05, -0.1, 0.0)}, "uninformative", "no loss to place"),
        ({"explained": (float("nan"),) * 3}, "uninformative", "moved by less than 0.001 logits:"),
    ],
)
def test_what_the_numbers_mean(made_up, changes, direction, words):
    (line,) = evidence(made_up("attribution", **{**NUMBERS, **changes}))
    assert line.direction == direction
    assert words in line.text


def test_a_share_that_one_seed_lacks_is_no_statement_about_all(made_up):
    result = made_up("attribution", **{**NUMBERS, "explained": (float("nan"),) * 3})
    (line,) = evidence(replace(result, headline=tuple(replace(m, seeds=2) for m in result.headline)))
    assert "moved by less than 0.001 logits in some seed:" in line.text
    assert "no loss" not in line.text


def test_seeds_pool_though_each_may_choose_another_part(result):
    other = replace(result, provenance={**result.provenance, "seed": 4})
    pooled = combine_results([result, other])
    assert len(pooled.table) == len(result.table)
    assert pooled.tables["chosen"]["seed"].tolist() == [3, 4]
    assert evidence(pooled)[0].direction == "neutral"
