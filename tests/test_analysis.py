"""The decorator: settings are checked by name, the subject is left alone, and the result says where it comes from."""

import pytest
import torch
from pydantic import Field, model_validator

from workbench.analysis import Analysis, Settings, analysis
from workbench.errors import UserError
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.fingerprint import weights_sha256
from workbench.models.spec import ModelSpec
from workbench.protocols import load_task
from workbench.results import Metric, Result
from workbench.subjects import Pair, Question


class Inner(Settings):
    depth: int = 1


class ProbeSettings(Settings):
    top: int = Field(default=3, ge=1)
    score: str = "taylor"
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _sense(self):
        if self.score == "none":
            raise ValueError("score 'none' scores nothing")
        return self


@analysis(version=7, paper="[Some+24]", needs=("arms",))
def probe(subject: Pair, settings: ProbeSettings) -> Result:
    """Summary of the function."""
    return Result("whatever", {}, (Metric("top", settings.top, 0, 9, 1),), limits=("few",))


@pytest.fixture
def pair(tmp_path):
    for seed, name in enumerate(("base", "tuned", "never")):
        (tmp_path / name).mkdir()
        save_model(build_model(ModelSpec(blocks=1, heads=1, width=8), 46, 33, seed), tmp_path / name)
    return Pair(
        name="wrapped",
        seed=3,
        task=load_task({"kind": "pcfg", "families": ["count"]}),
        capability="count_a",
        tuned_on="count_b",
        correlation=None,
        base_path=tmp_path / "base",
        tuned_path=tmp_path / "tuned",
        never_path=tmp_path / "never",
    )


def test_an_analysis_keeps_its_name_and_its_words():
    assert isinstance(probe, Analysis)
    assert (probe.__name__, probe.__doc__, probe.__module__) == ("probe", "Summary of the function.", __name__)
    assert probe.schema is ProbeSettings


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"topp": 3}, "probe has no setting 'topp'; did you mean 'top'?"),
        ({"zzz": 3}, "probe has no setting 'zzz'; known: inner, score, top"),
        ({"top": 0}, "probe: top is 0: it must be at least 1."),
        ({"top": "many"}, "probe: top is 'many': it must be a whole number."),
        ({"inner": {"depth": "x"}}, "probe: inner.depth is 'x'"),
        ({"score": "none"}, "probe: score 'none' scores nothing."),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_fix(pair, given, says):
    with pytest.raises(UserError) as caught:
        probe(pair, **given)
    assert says in str(caught.value)


def test_settings_are_checked_before_any_model_is_loaded(pair):
    (pair.base_path / "config.json").unlink()
    with pytest.raises(UserError, match="no setting"):
        probe(pair, topp=3)


def test_a_check_refuses_what_the_settings_alone_allow_and_sees_no_model():
    seen = []

    def fits(settings, question, blocks):
        seen.append((settings.top, question.capability, blocks))
        if settings.top > blocks:
            raise UserError(f"shallow: top is {settings.top}, but there are {blocks} blocks; lower it.")

    @analysis(version=1, check=fits)
    def shallow(subject: Pair, settings: ProbeSettings) -> Result:
        raise AssertionError("a check runs nothing")

    question = Question("wrapped", 3, load_task({"kind": "pcfg", "families": ["count"]}), "count_a", "count_b", None)
    shallow.check({"top": 2}, question, 2)
    with pytest.raises(UserError, match="top is 3, but there are 2 blocks; lower it"):
        shallow.check({}, question, 2)  # the default is 3
    assert seen == [(2, "count_a", 2), (3, "count_a", 2)]
    with pytest.raises(UserError, match="shallow has no setting 'topp'"):
        shallow.check({"topp": 2}, question, 2)
    probe.check({"top": 99}, question, 2)  # without a check the settings are all there is


def test_the_result_says_where_it_comes_from(pair):
    result = probe(pair, top=5)
    assert result.name == "probe"
    assert result.settings == {"top": 5, "score": "taylor", "inner": {"depth": 1}}
    assert result.metric("top").value == 5
    assert result.limits == ("few",)
    provenance = dict(result.provenance)
    assert 0 <= provenance.pop("seconds") < 60
    assert provenance == {
        "pair": "wrapped",
        "seed": 3,
        "capability": "count_a",
        "tuned_on": "count_b",
        "paper": "[Some+24]",
        "version": 7,
        "dtype": "float32",
        "device": "cpu",
        "base_sha256": weights_sha256(pair.base),
        "tuned_sha256": weights_sha256(pair.tuned),
    }


@pytest.mark.parametrize("name", ["base", "tuned", "never_had_it"])
def test_an_analysis_that_changes_a_model_fails(pair, name):
    @analysis(version=1)
    def careless(subject: Pair, settings: ProbeSettings) -> Result:
        with torch.no_grad():
            getattr(subject, name).lm_head.weight.mul_(2)
        return Result("careless", {}, ())

    with pytest.raises(RuntimeError, match="an analysis changed the weights, hooks or mode of a GPT2LMHeadModel"):
        careless(pair)
