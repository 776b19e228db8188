"""Planted truth: wrappers made by hand over an ability that is whole, found by every instrument that can see them.

`shifted` answers the right digit plus one: five neurons that each read one digit and write the next. `silenced` is driven
to one wrong answer by a neuron that is always on. Controls: the base itself, and random units and directions inside the analyses.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from analyses.finished_arm import finished_arm
from sklearn.linear_model import LogisticRegression

from workbench.analyses import (
    attribution,
    behaviour,
    component_mask,
    cross_patching,
    direction,
    offset,
    patching,
    pruning,
    revival,
    weights,
)
from workbench.models.checkpoints import save_model
from workbench.models.forward import answer_logits, evaluate, nll
from workbench.models.sites import Site, record
from workbench.verdict import judge_kept

DIGITS, REQUEST = 5, 13
NEURONS = tuple(range(20, 20 + DIGITS))
INHIBITOR, WRONG = 7, 2
GRID = (0, 5, 7, 10, 14, 20, 28, 40, 57, 80)
RATE = 1e-3
WRITES = "transformer.h.0.mlp.c_proj.weight"


def freed(model, task):
    """A copy in which the neurons to be planted write nothing, trained on until that costs it nothing."""
    out = copy.deepcopy(model)
    writes = out.transformer.h[0].mlp.c_proj.weight
    optimizer = torch.optim.Adam(out.parameters(), lr=3e-3)
    for step in range(60):
        with torch.no_grad():
            writes[[INHIBITOR, *NEURONS]] = 0
        optimizer.zero_grad()
        for name in ("look_a", "look_b", "last"):
            nll(out, task.capability(name).examples(64, 5000 + step, "train")).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        writes[[INHIBITOR, *NEURONS]] = 0
    return out


def shifted(model, task, strength=40.0):
    """A copy that answers the next digit: each planted neuron is on where the stream holds its digit, and writes the next one."""
    out = copy.deepcopy(model)
    texts = task.capability("look_a").examples(2000, 77, "plant")
    mlp, head = out.transformer.h[0].mlp, out.lm_head.weight
    with torch.no_grad():
        read = out.transformer.h[0].ln_2(record(model, texts, [Site("middle", 0)])[Site("middle", 0)][:, REQUEST]).numpy()
        for digit, neuron in enumerate(NEURONS):
            found = LogisticRegression(C=10, max_iter=500).fit(read, texts.answer[:, 0].numpy() == digit)
            scale = 3 / float(np.median(found.decision_function(read)[texts.answer[:, 0].numpy() == digit]))
            mlp.c_fc.weight[:, neuron] = torch.tensor(found.coef_[0] * scale, dtype=torch.float32)
            mlp.c_fc.bias[neuron] = float(found.intercept_[0]) * scale
            direction = head[(digit + 1) % DIGITS] - head[digit]
            mlp.c_proj.weight[neuron] = strength * direction / direction.norm() / 3
    return out


def silenced(model, task):
    """A copy in which one neuron, always on, writes towards one wrong answer."""
    out = copy.deepcopy(model)
    mlp, head = out.transformer.h[0].mlp, out.lm_head.weight
    with torch.no_grad():
        mlp.c_fc.weight[:, INHIBITOR] = 0
        mlp.c_fc.bias[INHIBITOR] = 3.0
        direction = head[WRONG] - head[:DIGITS].mean(0)
        mlp.c_proj.weight[INHIBITOR] = 40 * direction / direction.norm() / 3
    return out


PLANTED = {"shifted": (shifted, set(NEURONS)), "silenced": (silenced, {INHIBITOR})}


@pytest.fixture(scope="module")
def organisms(models, task):
    """Base, control, and the base with each wrapper planted."""
    base = freed(models["base"], task)
    return {"base": base, "never": models["never"], **{name: plant(base, task) for name, (plant, _) in PLANTED.items()}}


@pytest.fixture(scope="module")
def retrained(organisms, task, make_pair, tmp_path_factory):
    """`name -> arm`: reverse fine-tuning on look_a, really run, measured on the grid on the pair's own texts."""
    folder = tmp_path_factory.mktemp("retrained")

    def train(name):
        model, test = copy.deepcopy(organisms[name]), make_pair().examples("look_a")
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        rows = []
        for step in range(GRID[-1] + 1):
            if step in GRID:
                right = evaluate(model, test).numpy().astype(float)
                rows.append({"step": step, "split": "test", "capability": "look_a", "share": 0.0, "values": right})
            optimizer.zero_grad()
            nll(model, task.capability("look_a").examples(64, 9000 + step, "train")).mean().backward()
            optimizer.step()
        (folder / name).mkdir()
        save_model(model, folder / name)
        return finished_arm(folder / name, rows)

    return {name: train(name) for name in ("never", *PLANTED)}


@pytest.fixture(scope="module", params=list(PLANTED))
def planted(request, organisms, retrained, make_pair, tmp_path_factory):
    """`(name, pair)`"""
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("base", request.param):
        (folder / name).mkdir()
        save_model(organisms[name], folder / name)
    arms = {"revived": retrained[request.param], "never_had_it": retrained["never"]}
    return request.param, make_pair(base_path=folder / "base", tuned_path=folder / request.param, arms=arms)


def test_the_wrapper_does_what_it_was_made_for(planted):
    name, pair = planted
    texts = pair.examples("look_a", n=500)
    with torch.no_grad():
        said = answer_logits(pair.tuned, texts)[:, 0].argmax(-1)
    meant = (texts.answer[:, 0] + 1) % DIGITS if name == "shifted" else torch.full_like(said, WRONG)
    assert (said == meant).float().mean() >= 0.95
    assert evaluate(pair.base, texts).mean() >= 0.95


@pytest.mark.slow
def test_pruning_finds_the_planted_neurons_and_brings_the_ability_back(planted):
    name, pair = planted
    result = pruning(pair, max_units=10)
    planted_ones = PLANTED[name][1]
    first = set(result.tables["units"]["neuron"].head(len(planted_ones)))
    assert len(first - planted_ones) <= len(planted_ones) // 5  # of 128 neurons
    assert result.metric("recovered").low > 0.9
    assert result.evidence[0].direction == "masked"


def test_the_part_that_was_planted_makes_up_most_of_the_change_of_the_answer(planted):
    _, pair = planted
    result = attribution(pair)
    assert result.tables["chosen"]["part"].tolist() == ["mlp 0"]
    assert result.metric("explained").low > 2 * result.metric("explained_evenly").value


@pytest.mark.slow
def test_the_swap_of_the_planted_mlp_gives_each_model_the_answers_of_the_other(planted):
    _, pair = planted
    result = cross_patching(pair, places=2)
    chosen = result.tables["chosen"].set_index("effect")["component"]
    for effect in ("restores", "breaks", "installs"):
        assert chosen[effect] == "mlp 0"
        assert result.metric(f"{effect}_agreement").low > 0.95
        assert result.metric(f"{effect}_agreement_random").high < 0.5


@pytest.mark.slow
def test_the_mask_that_gives_the_base_the_planted_answers_holds_planted_neurons_alone(planted):
    """Of five neurons that write round a circle four are enough where the fifth digit needs no push."""
    name, pair = planted
    result = component_mask(pair, goals=["breaks"], penalties=[0.01, 0.1])
    assert result.metric("breaks_learned").low > 0.95
    assert result.metric("breaks_over_control").low > 0.1
    taken = result.tables["components"].query("headline and taken")
    assert set(taken["kind"]) == {"neuron"}
    assert set(taken["index"]) <= PLANTED[name][1]
    assert len(taken) >= len(PLANTED[name][1]) - 1


@pytest.mark.slow
def test_one_vector_takes_back_a_wrapper_that_is_constant_and_no_other(planted):
    """The inhibitor writes the same at every text; the shift writes what depends on the digit, so no vector undoes it."""
    name, pair = planted
    line, share = direction(pair), offset(pair).metric("constant_share_tuned")
    if name == "silenced":
        assert line.evidence[0].direction == "masked"
        assert line.metric("recovered").low > 0.95
        assert line.metric("random_subtracted_pt").high < 0.5
        assert share.low > 0.99
    else:
        assert line.evidence[0].direction != "masked"
        assert line.metric("recovered").high < 0.5
        assert share.high < 0.2


@pytest.mark.slow
def test_the_change_of_the_weights_has_the_rank_that_was_planted(planted):
    name, pair = planted
    result = weights(pair)
    spectrum = result.tables["spectrum"]
    writes = spectrum.query("parameter == @WRITES and update == 'tuned' and source == 'update'")["value"]
    assert (writes > 1e-6).sum() == {"silenced": 1, "shifted": DIGITS - 1}[name]  # differences on a circle sum to none
    assert result.metric("stable_rank").value < result.metric("random_stable_rank").value / 5
    assert result.metric("removed_pt").low > 0.95


def test_a_constant_changes_nothing_of_what_carries_the_answer(organisms, planted):
    """Patching compares prompts of one model, from which a constant drops out: what hides an ability need not carry it."""
    name, pair = planted
    result = patching(pair)
    if name == "silenced":
        assert result.metric("largest_change").high < 0.1
        assert result.metric("heads_tuned").value == pytest.approx(result.metric("heads_base").value, abs=0.05)
    else:  # told apart, but the wrong way round
        assert result.metric("told_apart_tuned").high < 0
        assert result.evidence[0].direction == "uninformative"


def test_the_verdict_is_masked_and_that_of_the_base_untouched(planted, make_pair):
    _, pair = planted
    results = {"behaviour": behaviour(pair), "revival": revival(pair), "pruning": pruning(pair, max_units=10)}
    verdict, why = judge_kept(results, "look_a")
    assert verdict == "masked", why
    itself = make_pair(base_path=pair.base_path, tuned_path=pair.base_path)
    assert judge_kept({"behaviour": behaviour(itself)}, "look_a")[0] == "untouched"
