"""Planted truth in a compiled model: a block behind the program that turns each count into the next one, or into one wrong one.

The program is exact, so the ability is whole by construction; what covers it is known neuron by neuron.
"""

from __future__ import annotations

import copy

import pytest
import torch
from analyses.finished_arm import finished_arm

from workbench.analyses import (
    attribution,
    behaviour,
    component_mask,
    cross_patching,
    direction,
    patching,
    pruning,
    revival,
    weights,
)
from workbench.models.checkpoints import save_model
from workbench.models.compiled import CompiledForCausalLM, build
from workbench.models.forward import answer_logits, evaluate, nll
from workbench.protocols import compiled_weights, load_task
from workbench.subjects import Pair
from workbench.verdict import judge_kept

pytestmark = pytest.mark.slow

GRID = (0, 5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 320)
RATE = 3e-3
INHIBITOR, WRONG = 4, 6
COUNTS, LAST = 9, 3
PARTS = ("input.weight", "input.bias", "output.weight")
WRITES = f"model.blocks.{LAST}.mlp.output.weight"


def lengthened(model, neurons):
    """The same program with a block behind it that does nothing, and so many more neurons in every block."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers += 1
    config.intermediate_size = max(config.intermediate_size, neurons)
    width = config.intermediate_size
    config.neuron_labels = [[*names, *[""] * width][:width] for names in (*config.neuron_labels, [])]
    out = CompiledForCausalLM(config).eval()
    own = model.state_dict()
    with torch.no_grad():
        for name, parameter in out.named_parameters():
            parameter.zero_()
            if name in own:
                parameter[tuple(slice(size) for size in own[name].shape)] = own[name]
    return out


def shifted(model, answers):
    """A copy whose last block writes the next answer where the stream holds one; the largest answer becomes the first."""
    out = copy.deepcopy(model)
    mlp = out.model.blocks[-1].mlp
    holds = torch.nn.functional.normalize(out.head.weight[answers], dim=1)
    with torch.no_grad():
        for i, direction in enumerate(holds):
            mlp.input.weight[i] = direction
            mlp.input.bias[i] = -0.5
            mlp.output.weight[:, i] = 2 * (holds[(i + 1) % len(holds)] - direction)
    return out


def silenced(model, answers):
    """A copy in which one neuron of the last block, always on, writes one answer more loudly than the program writes its own."""
    out = copy.deepcopy(model)
    mlp = out.model.blocks[-1].mlp
    with torch.no_grad():
        mlp.input.bias[INHIBITOR] = 1.0
        mlp.output.weight[:, INHIBITOR] = 4 * torch.nn.functional.normalize(out.head.weight[answers[WRONG]], dim=0)
    return out


PLANTS = {"shifted": shifted, "silenced": silenced}


@pytest.fixture(scope="module")
def programs():
    """Counting a, and counting b by the same architecture, which never counted a."""
    task = load_task({"kind": "rasp", "length": 8, "letters": 3})
    return {name: lengthened(build(compiled_weights(task, f"count_{name}"), 0.0), COUNTS) for name in ("a", "b")}


@pytest.fixture(scope="module")
def pair(programs, tmp_path_factory):
    """`(tuned model, arms) -> Pair`"""

    def make(tuned, **arms):
        folder = tmp_path_factory.mktemp("compiled")
        paths = {}
        for name, model in {"base": programs["a"], "never": programs["b"], "tuned": tuned}.items():
            paths[f"{name}_path"] = folder / name
            (folder / name).mkdir()
            save_model(model, folder / name)
        task = load_task({"kind": "rasp", "length": 8, "letters": 3})
        return Pair("compiled", 0, task, "count_a", "count_b", None, n=300, arms=arms, **paths)

    return make


@pytest.fixture(scope="module")
def retrain(pair, programs, tmp_path_factory):
    """`model -> arm`: reverse fine-tuning on count_a, really run, measured on the grid on the pair's own texts."""
    asked = pair(programs["a"])
    test = asked.examples("count_a")

    def train(start):
        model, rows = copy.deepcopy(start), []
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        for step in range(GRID[-1] + 1):
            if step in GRID:
                right = evaluate(model, test).numpy().astype(float)
                rows.append({"step": step, "split": "test", "capability": "count_a", "share": 0.0, "values": right})
            optimizer.zero_grad()
            nll(model, asked.task.capability("count_a").examples(64, 9000 + step, "train")).mean().backward()
            optimizer.step()
        folder = tmp_path_factory.mktemp("retrained")
        save_model(model, folder)
        return finished_arm(folder, rows)

    return train


@pytest.fixture(scope="module")
def never(retrain, programs):
    return retrain(programs["b"])


@pytest.fixture(scope="module", params=["silenced", pytest.param("shifted", marks=pytest.mark.slow)])
def planted(request, programs, pair, retrain, never):
    """`(name, pair)`"""
    answers = pair(programs["a"]).examples("count_a", n=16).candidates
    tuned = PLANTS[request.param](programs["a"], answers)
    return request.param, pair(tuned, revived=retrain(tuned), never_had_it=never)


def test_the_wrapper_does_what_it_was_made_for(planted):
    name, pair = planted
    texts = pair.examples("count_a", n=1000)
    order, true = texts.candidates.tolist(), texts.answer[:, 0].tolist()
    with torch.no_grad():
        said = answer_logits(pair.tuned, texts)[:, 0].argmax(-1).tolist()
    assert len(order) == COUNTS
    assert said == [order[(order.index(a) + 1) % len(order)] if name == "shifted" else order[WRONG] for a in true]
    assert evaluate(pair.base, texts).mean() == 1


@pytest.mark.slow
def test_the_swap_of_the_planted_mlp_gives_the_base_the_answers_of_the_tuned_model(planted):
    _, pair = planted
    result = cross_patching(pair, places=2, n=100)
    chosen = result.tables["chosen"].set_index("effect")["component"]
    assert {chosen["restores"], chosen["breaks"]} == {f"mlp {LAST}"}
    assert result.metric("breaks_agreement").low > 0.95
    assert result.metric("breaks_agreement_control").high < 0.1
    assert result.metric("restores").low > 0.95
    line = result.evidence[0]
    assert line.direction == "neutral"
    assert "a control's does as much" in line.text  # what writes nothing there does as well as the base's own


@pytest.mark.slow
def test_the_mask_holds_planted_neurons_alone(planted):
    name, pair = planted
    result = component_mask(pair, goals=["breaks"], penalties=[0.03, 0.1], score_examples=256)
    assert result.metric("breaks").low > 0.85
    assert result.metric("breaks_control").high < 0.5
    taken = result.tables["components"].query("headline and taken")
    assert set(taken["kind"]) == {"neuron"}
    assert set(taken["block"]) == {LAST}
    assert set(taken["index"]) == {INHIBITOR} if name == "silenced" else set(taken["index"]) <= set(range(COUNTS))


@pytest.mark.slow
def test_the_weights_changed_where_it_was_planted_and_nowhere_else(planted):
    name, pair = planted
    table = weights(pair).tables["table"]
    norms = table.query("update == 'tuned' and measure == 'norm' and source == 'update'").set_index("parameter")["value"]
    assert set(norms[norms > 0].index) <= {f"model.blocks.{LAST}.mlp.{part}" for part in PARTS}
    ranks = table.query("parameter == @WRITES and update == 'tuned' and measure == 'stable_rank' and source == 'update'")[
        "value"
    ]
    assert ranks.item() == pytest.approx(1) if name == "silenced" else ranks.item() > 3


@pytest.mark.slow
def test_one_vector_and_one_neuron_take_back_what_is_constant(planted):
    """A shift is not: the neurons of the program that tell one count from the next undo as much of it as the planted ones."""
    name, pair = planted
    pruned, line = pruning(pair), direction(pair)
    if name == "silenced":
        assert pruned.tables["units"].iloc[0][["block", "neuron"]].tolist() == [LAST, INHIBITOR]
        for result in (pruned, line):
            assert result.metric("recovered").low > 0.95
            assert result.evidence[0].direction == "masked"
    else:
        for result in (pruned, line):
            assert result.metric("recovered").high < 0.1
            assert result.evidence[0].direction == "neutral"


def test_all_of_the_changed_answer_is_written_by_the_planted_mlp(planted):
    _, pair = planted
    result = attribution(pair)
    assert result.tables["chosen"]["part"].tolist() == [f"mlp {LAST}"]
    assert result.metric("explained").value == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_where_the_answer_is_carried_a_constant_changes_nothing(planted):
    name, pair = planted
    result = patching(pair)
    if name == "silenced":
        assert abs(result.metric("largest_change").value) < 1e-3
    else:  # told apart, but the wrong way round
        assert result.metric("told_apart_tuned").high < 0


def test_the_verdict_is_masked(planted):
    name, pair = planted
    results = {"behaviour": behaviour(pair), "revival": revival(pair)}
    if name == "silenced":
        results["pruning"] = pruning(pair)
    verdict, why = judge_kept(results, "count_a")
    assert verdict == "masked", why
