from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from workbench.figures import trainings
from workbench.figures.theme import GREY
from workbench.figures.trainings import Training, alt, figure, table
from workbench.statistics import wilson


def training(part, name, losses=(3.0, 2.0), right=((0, 0, 0, 1), (1, 1, 0, 1)), share=np.nan):
    metrics = pd.DataFrame(
        [(10 * i, "train", "loss_nats", v) for i, v in enumerate(losses)]
        + [(0, "train", "learning_rate", 0.1), (0, "test: dialogue", "loss_nats", 99.0)],
        columns=["step", "split", "name", "value"],
    )
    rows = [
        (10 * i, "test", ability, share, list(map(float, r))) for i, r in enumerate(right) for ability in ("dialogue", "ending")
    ]
    return Training(part, name, metrics, pd.DataFrame(rows, columns=["step", "split", "capability", "share", "values"]))


PAIR = [
    training("pretraining", "base", right=()),
    training("pretraining", "never_had_it", right=()),
    training("fine-tuning", "tuned"),
    training("reverse fine-tuning", "revived", losses=(5.0, 4.0)),
    training("reverse fine-tuning", "never_had_it"),
    training("reverse fine-tuning", "revived@1e-05"),
]


def test_the_table_has_the_training_loss_and_the_accuracy_of_the_one_ability_with_its_interval():
    rows = table([training("fine-tuning", "tuned")], "dialogue")
    loss, accuracy = rows[rows["measure"] == "loss"], rows[rows["measure"] == "accuracy"]
    assert list(zip(loss["step"], loss["value"], strict=True)) == [(0, 3.0), (10, 2.0)]
    assert list(zip(accuracy["step"], accuracy["value"], accuracy["n"], strict=True)) == [(0, 0.25, 4), (10, 0.75, 4)]
    low, high = wilson(1, 4)
    assert (accuracy["low"].iloc[0], accuracy["high"].iloc[0]) == (float(low), float(high))


def test_a_column_for_each_part_and_one_name_for_a_model_in_all():
    fig = figure(table(PAIR, "dialogue"), "dialogue")
    assert [a.text for a in fig.layout.annotations] == list(trainings.PARTS)
    lines = [t for t in fig.data if t.mode == "lines" and t.fill is None]
    assert [t.name for t in lines if t.showlegend] == ["never had it", "base", "fine-tuned", "revived, rate 1e-05", "revived"]
    assert {t.line.color for t in lines if t.name == "never had it"} == {GREY}
    assert [tuple(t.y) for t in lines if t.name == "revived"] == [(5.0, 4.0)]
    assert {t.xaxis for t in lines if t.name == "never had it"} == {"x", "x3"}


def test_a_part_that_was_not_evaluated_says_so():
    fig = figure(table(PAIR, "dialogue"), "dialogue")
    said = [t.xaxis for t in fig.data if t.text is not None and list(t.text) == [trainings.NOTHING]]
    assert said == ["x4"]


def test_it_is_a_figure_without_a_single_run():
    empty = table([], "dialogue")
    assert json.loads(figure(empty, "dialogue").to_json())["layout"]["title"]["text"] == "How the models were made"
    assert alt(empty) == "Training curves: nothing was recorded yet."


def test_its_words_say_first_and_last():
    said = alt(table([training("fine-tuning", "tuned")], "dialogue"))
    assert (
        said
        == "Training curves: fine-tuning of fine-tuned, loss from 3 to 2; fine-tuning of fine-tuned, accuracy from 0.25 to 0.75."
    )


@pytest.mark.parametrize("part", trainings.PARTS)
def test_steps_are_told_as_they_were(part):
    fig = figure(table([training(part, "tuned")], "dialogue"), "dialogue")
    (line,) = [t for t in fig.data if t.mode == "lines" and t.fill is None]
    assert list(line.customdata) == [0, 10]
    assert list(line.x) == pytest.approx(list(np.log10([1, 11])))
