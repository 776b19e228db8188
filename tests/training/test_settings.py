"""Settings of a training stage: what is refused, and that plain data gives them back."""

import pytest
from pydantic import ValidationError

from workbench.training.settings import TrainSettings


def test_settings_survive_plain_data():
    settings = TrainSettings(steps=7, lr=1e-3, optimizer={"kind": "sgd", "momentum": 0.5}, schedule={"kind": "constant"})
    assert TrainSettings(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": -1},
        {"lr": 0},
        {"lr": float("nan")},
        {"batch_size": 0},
        {"accumulate": 0},
        {"batch_size": 4, "accumulate": 5},
        {"clip": 0},
        {"precision": "fp16"},
        {"log_every": 0},
        {"learning_rate": 1e-3},
        {"optimizer": {"kind": "lion"}},
    ],
)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValidationError):
        TrainSettings(**{"steps": 10, "lr": 1e-3, **bad})


def test_settings_cannot_be_changed_later():
    settings = TrainSettings(steps=1, lr=1.0)
    with pytest.raises(ValidationError):
        settings.steps = 2
