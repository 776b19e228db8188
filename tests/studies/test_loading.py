"""Study files, presets, overrides and grids on their way to a study."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from studies.tiny import TINY, write_study

from workbench.errors import UserError
from workbench.models.spec import ModelSpec
from workbench.studies.loading import apply_override, load_study, number_or, parse_study, preset_names
from workbench.studies.plan import plan

HUB = "roneneldan/TinyStories"
OFFLINE = [
    "task.corpus=sample",
    "task.tokenizer=1024",
    "evaluation.examples=16",
    "evaluation.final_examples=16",
]
"""A preset of the whole hub data set, with the few stories of the sample instead."""


@pytest.fixture
def file(tmp_path):
    return write_study(tmp_path)


@pytest.mark.parametrize(
    "name",  # the paper's grids have thousands of stages
    [pytest.param(n, marks=pytest.mark.slow) if n.startswith("grid") else n for n in preset_names()],
)
def test_a_preset_loads_and_expands(name):
    spec = load_study(name, seeds=[0])
    assert spec.study == name
    assert spec.note
    if spec.task.get("corpus") == HUB:
        spec = load_study(name, OFFLINE, seeds=[0])
    assert plan(spec).stages


@pytest.mark.parametrize(("name", "millions"), [("stories_8M", 8.3), ("stories_33M", 34.1), ("stories_91M", 97.5)])
def test_a_preset_of_all_tinystories_has_its_size_and_the_papers_updates_and_arms(name, millions):
    """[Jain+23 §F.1] and its authors' code: 30,000 updates of 128 x 1024 tokens, then 4000 at constant rates 1e-4 and 1e-5."""
    spec = load_study(name)
    assert spec.model.parameters(spec.task["tokenizer"], spec.task["context"]) / 1e6 == pytest.approx(millions, abs=0.05)
    trained = [*spec.pretrain.values(), *spec.finetune.values(), spec.revive]
    assert {t.batch_size * spec.task["context"] for t in trained} == {128 * 1024}
    assert {t.precision for t in trained} == {"bf16"}
    assert all(t.accumulate > 1 and t.batch_size % t.accumulate == 0 for t in trained)
    for pretrained in spec.pretrain.values():
        factors = [pretrained.schedule.factor(step, 30_000) for step in (0, 998, 999, 29_999)]
        assert (pretrained.steps, pretrained.lr) == (30_000, 1e-3)
        assert factors == pytest.approx([0.001, 0.999, 1.0, 0.0], abs=1e-6)
    assert sorted(t.lr for t in spec.finetune.values()) == [1e-5, 1e-4]
    assert {t.schedule.factor(step, t.steps) for t in trained[2:] for step in (0, t.steps - 1)} == {1.0}
    planned = plan(load_study(name, OFFLINE))
    assert [set(pair.analyses) for pair in planned.pairs] == [{"behaviour", "revival", "writing"}] * 2
    arms = {"revived", "never_had_it", "scratch", "irrelevant"}
    assert [set(pair.arms) for pair in planned.pairs] == [
        arms | {"revived@1e-05", "never_had_it@1e-05", "scratch@1e-05"},
        arms,
    ]


def test_a_preset_of_all_tinystories_says_offline_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set .+; fill the cache .+ or give .+ 'sample'"):
        plan(load_study("stories_8M"))


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


def test_reading_a_study_imports_no_torch():
    code = "import sys; from workbench.studies.loading import load_study; load_study('quickstart'); "
    code += "print([m for m in ('torch', 'pandas', 'transformers', 'synthetic_tasks') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
