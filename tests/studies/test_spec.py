from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from studies.tiny import TINY, write_study

from workbench.errors import UserError
from workbench.models.spec import ModelSpec
from workbench.studies.plan import plan
from workbench.studies.spec import (
    StudySpec,
    apply_override,
    load_study,
    number_or,
    parse_study,
    preset_names,
    read_study,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jsonschema


@pytest.fixture
def file(tmp_path):
    return write_study(tmp_path)


# --- presets and files


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads_and_expands(name):
    spec = load_study(name)
    assert spec.study == name
    assert spec.note
    assert plan(spec).stages


def test_a_file_says_what_it_says(file):
    spec = load_study(file)
    assert (spec.study, spec.seeds) == ("tiny", (0,))
    assert spec.model == ModelSpec(kind="gpt2", blocks=1, heads=2, width=16)
    assert spec.pretrain["base"].protocol_settings == {"operand_prior": {"a": 0.99, "b": 0.01}}
    assert spec.pretrain["base"].settings.steps == 20
    wrapped = spec.finetune["wrapped"]
    assert (wrapped.start, wrapped.against, wrapped.capability) == ("base", None, "count_b")
    assert wrapped.correlation is not None
    assert (wrapped.correlation.partner, wrapped.correlation.offset, wrapped.correlation.share) == ("count_a", 1, 1.0)
    assert spec.reference("wrapped") == "base"
    assert spec.revived == ("wrapped",)
    assert list(spec.analyses) == ["behaviour", "pruning", "probing", "revival"]


def test_a_dumped_study_is_the_study(file):
    for spec in (load_study(file), load_study("quickstart"), load_study("counting")):
        body = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        assert parse_study(yaml.safe_load(yaml.safe_dump(body))) == spec


FILES = {
    "- 1": "is no study: it holds list",
    "": "is no study: it holds NoneType",
    "just words": "is no study: it holds str",
    "a: [1": "is not valid YAML: .*line 1",
    "a: 'b": "is not valid YAML",
    "study: !!python/object/apply:os.system [exit 3]": "is not valid YAML: could not determine a constructor .*python/object",
    "study: !!python/name:os.system": "is not valid YAML",
    "[" * 3000: "is not valid YAML",
    "\0": "is not valid YAML",
    TINY + "1: 2": "keys should be strings",
    "study: x\ntask: {}": "pretrain is missing; add it",
}


@pytest.mark.parametrize("text", FILES, ids=lambda text: text[-12:])
def test_what_is_no_study_is_one_sentence(tmp_path, text):
    path = write_study(tmp_path, text)
    with pytest.raises(UserError, match=FILES[text]) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(UserError, match="no study file or preset 'quikstart'; did you mean 'quickstart'"):
        load_study("quikstart")
    with pytest.raises(UserError, match="no study file or preset"):
        load_study(tmp_path)
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        load_study("x" * 5000)
    (tmp_path / "latin.yaml").write_bytes(b"study: gr\xf6\xdfer")
    with pytest.raises(UserError, match=r"is not valid YAML: .*utf-8"):
        load_study(tmp_path / "latin.yaml")


# --- what it refuses

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
    "finetune.wrapped.correlation.share=1.5": "finetune.wrapped.correlation.share is 1.5: .*less than or equal to 1",
    "finetune.wrapped.correlation.share=-0.1": "finetune.wrapped.correlation.share is -0.1: .*greater than or equal to 0",
    "pretrain.base.steps=-1": "pretrain.base.steps is -1: .*greater than or equal to 0",
    "pretrain.base.lr=0": "pretrain.base.lr is 0: .*greater than 0",
    "pretrain.base.lr=.nan": "pretrain.base.lr is nan",
    "pretrain.base.lr=fast": "pretrain.base.lr is 'fast'",
    "pretrain.base.batch_size=0": "pretrain.base.batch_size is 0",
    "evaluation.examples=1": "evaluation.examples is 1: .*greater than or equal to 16",
    "revive.lr=1e-3": r"revive.lr 0.001 is not below finetune.wrapped.lr 0.001: .*lower revive.lr",
    "revive.lr=1": "revive.lr 1.0 is not below",
    "revive.other_rates=[0.0001]": r"revive.other_rates \[0.0001\] must be positive, different, and not revive.lr",
    "revive.other_rates=[-1]": "must be positive",
    "revive.stop={accuracy: 0}": "revive.stop.accuracy is 0",
    "revive.pairs=[wraped]": "revive.pairs: no fine-tune 'wraped'; did you mean 'wrapped'",
    "revive.arms=[revive]": "revive.arms.0 is 'revive': .*'revived'",
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


# --- overrides


def test_overrides_reach_any_depth_and_are_read_as_yaml(file):
    words = [
        "model.width=32",
        "revive.lr=3e-5",
        "task.families=[count, token, index]",
        "finetune.wrapped.correlation.share=0.5",
    ]
    spec = load_study(file, [*words, "revive.stop.accuracy=0.9", "note=a=b", "pretrain.base.balanced_fraction=1e-1"])
    assert spec.model.width == 32
    assert spec.revive is not None
    assert spec.revive.lr == 3e-5
    assert spec.revive.stop is not None
    assert spec.revive.stop.accuracy == 0.9
    assert spec.task["families"] == ["count", "token", "index"]
    assert spec.finetune["wrapped"].correlation is not None
    assert spec.finetune["wrapped"].correlation.share == 0.5
    assert spec.note == "a=b"
    assert spec.pretrain["base"].protocol_settings["balanced_fraction"] == 0.1
    assert load_study(file, ["seeds=[4]"], [7, 8]).seeds == (7, 8)


@pytest.mark.parametrize("bad", ["model.width", "study.x=1", "seeds.0=1", "model=[1", "note=a\tb: c", "model.width.x=3"])
def test_an_override_that_cannot_be_is_quoted(file, bad):
    with pytest.raises(UserError) as caught:
        load_study(file, [bad])
    assert repr(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_a_number_survives_the_command_line(value):
    body = {}
    apply_override(body, f"pretrain.base.lr={value!r}")
    assert body == {"pretrain": {"base": {"lr": value}}}


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "+3.e-4", "-1e5", "2e+3"])
def test_scientific_notation_is_a_number(text):
    assert number_or(text) == float(text)


@pytest.mark.parametrize("value", ["e4", "3e", "3-4", "count_a", "1e4x", "", 5, None, "0x1e4", "nane1"])
def test_everything_else_stays_what_it_is(value):
    assert number_or(value) is value


def test_scientific_notation_works_in_a_file_too(tmp_path):
    path = write_study(tmp_path, TINY.replace("lr: 1.0e-4", "lr: 1e-4"))
    revive = load_study(path).revive
    assert revive is not None
    assert revive.lr == 1e-4


# --- analyses, grids


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


def test_a_grid_makes_one_entry_per_combination(file):
    spec = load_study(file, ["finetune.wrapped.grid={lr: [1e-3, 0.01], correlation.share: [0, 0.5, 1.0]}"])
    assert list(spec.finetune) == [f"wrapped,lr={lr},share={share}" for lr in ("1e-3", 0.01) for share in (0, 0.5, 1.0)]
    last = spec.finetune["wrapped,lr=0.01,share=1.0"]
    assert last.correlation is not None
    assert (last.lr, last.correlation.share, last.correlation.partner) == (0.01, 1.0, "count_a")
    assert spec.finetune["wrapped,lr=1e-3,share=0"].lr == 1e-3
    spec = load_study(file, ["pretrain.base.grid={steps: [3]}", "finetune.wrapped.from='base,steps=3'"])
    assert spec.reference("wrapped") == "base,steps=3"


def test_grid_members_equal_entries_written_out(file):
    grid = load_study(file, ["finetune.wrapped.grid={correlation: [null]}"]).finetune["wrapped,correlation=None"]
    assert grid.correlation is None
    third = load_study(file, ["pretrain.third={steps: 1, lr: 1, grid: {mark: ['no', '1.0', true]}}"]).pretrain
    assert [p.protocol_settings["mark"] for name, p in third.items() if "mark" in name] == ["no", "1.0", True]


@pytest.mark.parametrize("axes", ["{lr: 3}", "{lr: []}", "[1]", "{lr: [1], steps: 5}", "{lr.x: [1]}"])
def test_a_grid_needs_lists(file, axes):
    with pytest.raises(UserError, match=r"finetune\.wrapped\.grid"):
        load_study(file, [f"finetune.wrapped.grid={axes}"])


def test_two_entries_of_one_name_are_refused(file):
    with pytest.raises(UserError, match=r"finetune.wrapped.grid makes two entries called 'wrapped,lr=1e-3'"):
        load_study(file, ["finetune.wrapped.grid={lr: ['1e-3', 1e-3]}"])


# --- for other programs


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


def test_reading_a_study_imports_no_torch():
    code = "import sys; from workbench.studies.spec import load_study; load_study('quickstart'); "
    code += "print([m for m in ('torch', 'pandas', 'transformers', 'synthetic_tasks') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
