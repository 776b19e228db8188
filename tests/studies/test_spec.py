"""What a study may say and what is refused, each with its place."""

from __future__ import annotations

import warnings

import pytest
import yaml
from studies.tiny import TINY, write_study

from workbench.errors import UserError
from workbench.studies.loading import load_study, parse_study, preset_names, read_study
from workbench.studies.spec import StudySpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jsonschema


@pytest.fixture
def file(tmp_path):
    return write_study(tmp_path)


BAD = {
    "model.bloks=3": "unknown key 'bloks' in model; did you mean 'blocks'",
    "modle={}": "unknown key 'modle' in the study; did you mean 'model'",
    "pretrain.base.stepps=3": "pretrain.base: unknown key 'stepps'; did you mean 'steps'",
    "pretrain.base.optimizer.weight_decai=0": "unknown key 'weight_decai' in pretrain.base.optimizer; did you mean 'weight_decay'",
    "finetune.wrapped.correlation.wiht=count_a": "unknown key 'wiht' in finetune.wrapped.correlation; did you mean 'with'",
    "revive.stop={accurracy: 0.9}": "unknown key 'accurracy' in revive.stop; did you mean 'accuracy'",
    "evaluation.foo=1": "unknown key 'foo' in evaluation; known: examples, final_examples",
    "model.width=15": "model: width 15 is not a multiple of heads 2",
    "model.kind=mamba": "model.kind is 'mamba'",
    "finetune.wrapped.correlation.share=1.5": "finetune.wrapped.correlation.share is 1.5: it must be at most 1.",
    "finetune.wrapped.correlation.share=-0.1": "finetune.wrapped.correlation.share is -0.1: it must be at least 0.",
    "pretrain.base.steps=-1": "pretrain.base.steps is -1: it must be at least 0.",
    "pretrain.base.lr=0": "pretrain.base.lr is 0: it must be more than 0.",
    "pretrain.base.lr=.nan": "pretrain.base.lr is nan",
    "pretrain.base.lr=fast": "pretrain.base.lr is 'fast'",
    "pretrain.base.batch_size=0": "pretrain.base.batch_size is 0",
    "evaluation.examples=1": "evaluation.examples is 1: it must be at least 16.",
    "revive.lr=1e-3": r"revive.lr 0.001 is not below finetune.wrapped.lr 0.001: .*lower revive.lr",
    "revive.lr=1": "revive.lr 1.0 is not below",
    "revive.other_rates=[0.0001]": r"revive.other_rates \[0.0001\] must be positive, different, and not revive.lr",
    "revive.other_rates=[-1]": "must be positive",
    "revive.stop={accuracy: 0}": "revive.stop.accuracy is 0",
    "revive.pairs=[wraped]": "revive.pairs: no fine-tune 'wraped'; did you mean 'wrapped'",
    "revive.arms=[revive]": "revive.arms\\[0\\] is 'revive': .*'revived'",
    "finetune.wrapped.from=bas": "finetune.wrapped.from: no pretrained model 'bas'; did you mean 'base'",
    "finetune.wrapped.against=bas": "finetune.wrapped.against: no pretrained model 'bas'; did you mean 'base'",
    "analyses=[prunning]": "analyses: no analysis 'prunning'; did you mean 'pruning'",
    "analyses={pruning_heads: {units: heads}}": r"no analysis 'pruning_heads'.*says which it is, as in {analysis: pruning}",
    "analyses={heads: {analysis: prunning}}": "analyses.heads.analysis: no analysis 'prunning'; did you mean 'pruning'",
    "analyses={heads: {analysis: 5}}": "analyses.heads.analysis: no analysis '5'; known: ",
    "analyses={probing: {analysis: pruning}}": "analyses.probing: .* is an analysis itself; call it pruning_2, say",
    "analyses={of-heads: {analysis: pruning}}": "analyses.of-heads: .* letters, digits and '_' alone, .*; call it pruning_2",
    "analyses=5": "analyses is 5",
    "analyses={pruning: 5}": "analyses.pruning is 5",
    "seeds=[]": r"seeds \[\] must be different non-negative numbers, at least one",
    "seeds=[1, 1]": r"seeds \[1, 1\] must be different",
    "seeds=[-1]": r"seeds \[-1\] must be different non-negative",
    "seeds=3": r"seeds: 3 is no list of whole numbers; write seeds: \[0, 1\], or on the command line --seeds 0,1",
    "seeds=x": "seeds: 'x' is no list of whole numbers",
    "seeds=[0, true]": r"seeds: \[0, True\] is no list of whole numbers",
    "pretrain={}": "pretrain is empty",
    "pretrain={base: {steps: 1, lr: 1}}": "finetune|never_had_it",
    "note={a: 1}": "note is {'a': 1}",
}


@pytest.mark.parametrize("override", BAD)
def test_a_bad_value_is_named_with_its_place(file, override):
    with pytest.raises(UserError, match=BAD[override]) as caught:
        load_study(file, [override])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("name", ["../x", "..", ".hidden", "a/b", "/tmp", "a b", "", "-rf", "x" * 200, "a\nb", "größe"])
def test_a_name_cannot_lead_out_of_the_store(file, name):
    body = yaml.safe_load(TINY)
    for renamed in (
        {**body, "study": name},
        {**body, "pretrain": {**body["pretrain"], name: body["pretrain"]["base"]}},
        {**body, "finetune": {**body["finetune"], name: body["finetune"]["wrapped"]}},
    ):
        with pytest.raises(UserError, match="cannot name a folder"):
            parse_study(renamed)


def test_never_had_it_must_be_pretrained_where_an_arm_needs_it(file):
    body = yaml.safe_load(TINY)
    del body["pretrain"]["never_had_it"]
    with pytest.raises(UserError, match=r"revive\.arms asks for never_had_it, but pretrain has no model of that name"):
        parse_study(body)
    body["revive"]["arms"] = ["revived", "scratch"]
    assert parse_study(body).revive is not None


def test_a_rate_is_only_compared_with_fine_tunes_that_are_revived_and_trained(file):
    steep = "finetune.gentle={from: base, capability: count_b, steps: 5, lr: 1e-5}"
    with pytest.raises(UserError, match=r"revive.lr 0.0001 is not below finetune.gentle.lr 1e-05"):
        load_study(file, [steep])
    assert load_study(file, [steep, "revive.pairs=[wrapped]"]).revived == ("wrapped",)
    assert load_study(file, [steep, "finetune.gentle.steps=0"]).revived == ("wrapped", "gentle")


def test_analyses_as_names_or_with_settings(file):
    as_names = load_study(file, ["analyses=[behaviour, pruning]"])
    assert as_names == load_study(file, ["analyses={behaviour: null, pruning: {}}"])
    assert load_study(file, ["analyses={pruning: {n: 32}}"]).analyses == {"pruning": {"n": 32}}


def test_an_analysis_can_stand_there_twice(file):
    entries = "{pruning: {n: 32}, heads: {analysis: pruning, units: heads}, probing: {analysis: probing}}"
    spec = load_study(file, [f"analyses={entries}"])
    assert [spec.analysis(entry) for entry in spec.analyses] == [
        ("pruning", {"n": 32}),
        ("pruning", {"units": "heads"}),
        ("probing", {}),
    ]
    assert parse_study(spec.model_dump(mode="json", by_alias=True)) == spec


def test_the_json_schema_is_valid_and_accepts_what_the_reader_accepts(file):
    schema = StudySpec.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name in (*preset_names(), file):
        validator.validate(yaml.safe_load(read_study(name)))
    settings = {**yaml.safe_load(TINY), "analyses": {"pruning": {"n": 16}, "behaviour": None}}
    validator.validate(settings)
    for bad in ({"studdy": 1}, {"seeds": "all"}, {"analyses": 5}, {"pretrain": {"base": {"steps": -1, "lr": 1}}}):
        assert not validator.is_valid({**settings, **bad})
