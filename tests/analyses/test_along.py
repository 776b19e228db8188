"""Along training: what an analysis says at each checkpoint is what it says of a pair whose tuned model is that checkpoint."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

from workbench.analyses import along, behaviour
from workbench.errors import UserError
from workbench.models.checkpoints import save_model
from workbench.replicates import combine_results
from workbench.runs import Run
from workbench.subjects import Trajectory
from workbench.training.schedule import evaluation_grid


def trajectory_of(folder):
    return Trajectory(Run(folder, "study", "finetune-planted-s3", "0" * 10, spec={"training": {"steps": 20}}))


@pytest.fixture(scope="module")
def trajectory(models, tmp_path_factory):
    """From the base to the covered model in a straight line, on the grid of 20 steps."""
    folder = tmp_path_factory.mktemp("trajectory")
    for step in evaluation_grid(20):
        model = copy.deepcopy(models["base"])
        with torch.no_grad():
            for p, end in zip(model.parameters(), models["covered"].parameters(), strict=True):
                p.lerp_(end, step / 20)
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
        save_model(model, folder / "checkpoints" / f"step-{step}")
    return trajectory_of(folder)


@pytest.fixture
def pair(make_pair, trajectory):
    return make_pair(trajectory=trajectory, n=64)


@pytest.fixture
def cut(pair, tmp_path):
    """`(kept) -> pair`: as if only these steps had been kept."""

    def make(kept, **changes):
        for c in pair.trajectory.run.checkpoints:
            if c.step in kept:
                shutil.copytree(c.path, tmp_path / "checkpoints" / c.path.name)
        return replace(pair, trajectory=trajectory_of(tmp_path), **changes)

    return make


def test_every_step_is_the_analysis_of_that_checkpoint(pair, trajectory):
    result = along(pair, follow="behaviour", points=3)
    steps = sorted(set(result.table["step"]))
    assert len(steps) == 3
    assert (steps[0], steps[-1]) == (0, 20)
    for step in steps:
        (checkpoint,) = [c for c in trajectory.run.checkpoints if c.step == step]
        alone = behaviour(replace(pair, tuned_path=checkpoint.path))
        rows = result.table[result.table["step"] == step].set_index("metric")
        assert {m.metric: m.value for m in alone.headline} == pytest.approx(rows["value"].to_dict(), nan_ok=True)
        assert (rows["n"] == [m.n for m in alone.headline]).all()
    assert result.metric("first_tuned_pt").value == result.metric("first_base_pt").value > 0.9
    assert result.metric("last_tuned_pt").value < 0.5


def test_all_checkpoints_or_the_steps_that_are_asked_for(pair):
    grid = evaluation_grid(20)
    assert sorted(set(along(pair, points=99).table["step"])) == list(grid)
    assert sorted(set(along(pair, steps=(7, 0)).table["step"])) == [0, 7]
    with pytest.raises(UserError, match="no checkpoint at step 8; it has 0, 5, 7"):
        along(pair, steps=(8,))


def test_seeds_share_their_steps_and_one_that_stopped_early_keeps_its_last(pair, cut):
    early = cut((0, 5), seed=4)
    assert sorted(set(along(early, points=3).table["step"])) == [0, 5]
    both = combine_results([along(p, points=3) for p in (pair, early)])
    steps = both.table.groupby("step")["seeds"].first().to_dict()
    assert steps[0] == steps[7] == steps[20] == 2
    assert steps[5] == 1  # the other seed does not look there


def test_settings_of_the_analysis_are_its_own(pair):
    assert set(along(pair, settings={"n": 32}, points=2).table["n"].dropna()) >= {32}
    with pytest.raises(UserError, match="behaviour has no setting 'm'"):
        along(pair, settings={"m": 3})


@pytest.mark.parametrize("name", ["along", "revival"])
def test_what_is_a_course_of_training_already_is_refused(pair, name):
    with pytest.raises(UserError, match=f"'{name}' is a course of training already"):
        along(pair, follow=name)


def test_what_is_not_there_is_refused_by_name(pair, make_pair, cut):
    with pytest.raises(UserError, match="there is no analysis 'behavior'"):
        along(pair, follow="behavior")
    with pytest.raises(UserError, match="has no training 'revived'; it has finetune"):
        along(pair, of="revived")
    with pytest.raises(UserError, match="come without the trainings that made them"):
        along(make_pair())
    with pytest.raises(UserError, match=r"kept 1 checkpoint; .*keep = all"):
        along(cut((20,)))
