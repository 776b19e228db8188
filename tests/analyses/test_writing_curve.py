"""Writing along training: every checkpoint is what `writing` says of a pair whose tuned model is that checkpoint."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from tinystories.task import StoriesTask
from workbench.analyses.writing import writing
from workbench.analyses.writing_curve import writing_curve
from workbench.errors import UserError
from workbench.figures import alt, figure, has_builder
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.spec import ModelSpec
from workbench.protocols import load_task
from workbench.runs import Run
from workbench.studies.handle import pool
from workbench.subjects import Pair, Question, Trajectory

SMALL = {"n": 24, "opening": 0, "new_tokens": 20, "loss_texts": 16}
STEPS = (0, 5, 7, 10)


def quoting(task, push):
    """A model that writes quotation marks as eagerly as `push` says, wherever it is."""
    model = build_model(ModelSpec(blocks=1, heads=2, width=16), task.vocab_size, task.context, seed=0)
    quote = [i for i in range(task.vocab_size) if '"' in task.tokenizer.token_text(i)]
    with torch.no_grad():
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 1.0
        model.get_output_embeddings().weight[:, 0] = 0.0
        model.get_output_embeddings().weight[quote, 0] = push
    return model


@pytest.fixture(scope="module")
def task() -> StoriesTask:
    made = load_task({"kind": "stories", "tokenizer": 600, "context": 160, "prompt": 24})
    assert isinstance(made, StoriesTask)
    return made


@pytest.fixture(scope="module")
def pair(task, tmp_path_factory) -> Pair:
    """Fine-tuning takes the marks away, reverse fine-tuning brings them back, and the control is slow to learn them."""
    folder = tmp_path_factory.mktemp("trainings")

    def training(name, pushes):
        for step, push in zip(STEPS, pushes, strict=True):
            where = folder / name / "checkpoints" / f"step-{step}"
            where.mkdir(parents=True)
            save_model(quoting(task, push), where)
        return Trajectory(Run(folder / name, "study", f"{name}-s0", "0" * 10, spec={"training": {"steps": 10}}))

    tuned = training("finetune", (6.0, 3.0, -30.0, -30.0))
    arms = {
        "revived": training("revived", (-30.0, 4.0, 6.0, 6.0)),
        "never_had_it": training("never", (-30.0, -30.0, -30.0, 3.0)),
    }
    return Pair(
        name="filtered",
        seed=0,
        task=task,
        capability="asked_dialogue",
        tuned_on="asked_no_dialogue",
        correlation=None,
        n=16,
        base_path=folder / "finetune" / "checkpoints" / "step-0",
        tuned_path=folder / "finetune" / "checkpoints" / "step-10",
        trajectory=tuned,
        arms=arms,
    )


@pytest.fixture(scope="module")
def result(pair):
    return writing_curve(pair, steps=(0, 7, 10), **SMALL)


@pytest.mark.slow
def test_every_checkpoint_is_what_writing_says_of_it(pair, result):
    for training, trajectory in {"finetune": pair.trajectory, **pair.arms}.items():
        for checkpoint in trajectory.run.checkpoints:
            if checkpoint.step == 5:
                continue
            alone = writing(replace(pair, tuned_path=checkpoint.path), **SMALL)
            where = f"training == '{training}' and step == {checkpoint.step}"
            (row,) = result.table.query(where).to_dict("records")
            assert row["value"] == alone.metric("writes_tuned").value
            losses = result.tables["loss"].query(where).set_index("kind")["value"]
            assert list(losses.index) == ["asked_dialogue", "asked_no_dialogue", "adversarial_dialogue"]
            for kind, value in losses.items():
                assert value == pytest.approx(alone.metric(f"loss_tuned_{kind}").value)


def test_it_goes_and_comes_back_and_the_control_is_late(result):
    share = result.table.set_index(["training", "step"])["value"]
    assert share["finetune", 0] > 0.5 > share["finetune", 10] == 0
    assert share["revived", 7] > 0.5 > share["never_had_it", 7] == 0
    assert result.metric("first_revived").value == 0
    assert result.metric("last_revived").value == share["revived", 10]
    assert result.metric("writes_base").value == share["finetune", 0]
    assert result.metric("writes_real").n == len(pair_openings(result))


def pair_openings(result):
    return range(int(result.tables["bounds"].set_index("model").loc["real", "n"]))


def test_points_are_spread_over_the_grid_and_a_step_without_a_checkpoint_is_refused(pair):
    assert sorted(set(writing_curve(pair, points=2, **SMALL).table["step"])) == [0, 10]
    with pytest.raises(UserError, match="writing_curve: finetune-s0 has no checkpoint at step 3"):
        writing_curve(pair, steps=(3,), **SMALL)


def test_a_pair_without_arms_has_fine_tuning_alone(pair):
    alone = writing_curve(replace(pair, arms={}), points=2, **SMALL)
    assert set(alone.table["training"]) == {"finetune"}
    assert "revived" not in [t.name for t in figure(alone).data]


def test_what_cannot_write_is_refused_by_its_name():
    task = load_task({"kind": "pcfg", "text_length": 12, "window": 6})
    with pytest.raises(UserError, match="writing_curve: a PcfgTask has no texts"):
        writing_curve.check({}, Question("x", 0, task, "count_a", "count_b", None), 2)


@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_figure_has_a_column_per_training_and_a_row_per_kind(pair, result, seeds):
    given = pool([result, writing_curve(replace(pair, seed=1), steps=(0, 7, 10), **SMALL)][:seeds])
    fig = figure(given)
    assert has_builder("writing_curve")
    assert [t.name for t in fig.data if t.showlegend] == ["fine-tuned", "never had it", "revived"]
    titles = [a.text for a in fig.layout.annotations]
    assert "loss, without dialogue, though asked for" in titles
    shares = next(t for t in fig.data if t.name == "fine-tuned")
    assert shares.y[0] == pytest.approx(given.metric("first_finetune").value)
    assert "revived from 0.00" in alt(given)


def test_nothing_is_left_changed(pair):
    before = copy.deepcopy(pair.base.state_dict())
    writing_curve(pair, points=2, **SMALL)
    assert all(torch.equal(before[k], v) for k, v in pair.base.state_dict().items())


def test_a_result_without_rows_draws_that_nothing_was_measured(result):
    bare = replace(result, tables={name: table.iloc[:0] for name, table in result.tables.items()})
    fig = figure(bare)
    assert not fig.data
    assert "nothing was measured" in str(fig.layout.title.subtitle.text or fig.layout.title.text)
