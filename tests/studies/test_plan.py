from __future__ import annotations

import copy
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.test_compiled_study import COMPILED
from studies.tiny import TINY

from workbench.errors import UserError
from workbench.models.spec import ModelSpec
from workbench.protocols import compiled_weights, load_task
from workbench.registry import analyses
from workbench.runs import Store
from workbench.studies.loading import parse_study
from workbench.studies.plan import PROCESS_BYTES, STAGE_SECONDS, Plan, plan
from workbench.studies.spec import Arm
from workbench.studies.stage import not_done

SECOND = {"from": "never_had_it", "against": "base", "capability": "count_b", "steps": 8, "lr": 2e-3, "batch_size": 8}
ANALYSES = ("behaviour", "pruning", "probing", "revival")


def body(**changes):
    return {**yaml.safe_load(TINY), **changes}


def planned(**changes) -> Plan:
    return plan(parse_study(body(**changes)))


def keys(made: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in made.stages}


def changed(path: str, value) -> Plan:
    """The tiny study with one value changed."""
    one = copy.deepcopy(body())
    place = one
    *sections, last = path.split(".")
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return plan(parse_study(one))


# --- shape


def test_the_graph_of_the_tiny_study():
    made = planned()
    of = {stage.key: stage.name for stage in made.stages}
    parents = {stage.name: [of[key] for key in stage.parents] for stage in made.stages}
    models = ["pretrain-base-s0", "finetune-wrapped-s0", "pretrain-never_had_it-s0"]
    arms = {
        "reverse-revived-wrapped-s0": ["finetune-wrapped-s0"],
        "reverse-never_had_it-s0": ["pretrain-never_had_it-s0"],
        "reverse-scratch-s0": [],
        "reverse-irrelevant-wrapped-s0": ["finetune-wrapped-s0"],
    }
    assert parents == {
        "pretrain-base-s0": [],
        "pretrain-never_had_it-s0": [],
        "finetune-wrapped-s0": ["pretrain-base-s0"],
        **arms,
        "behaviour-wrapped-s0": models,
        "pruning-wrapped-s0": models,
        "probing-wrapped-s0": models,
        "revival-wrapped-s0": [*models, *arms],
    }
    assert {stage.kind for stage in made.stages} == {"pretrain", "finetune", "reverse", "analyse"}
    (pair,) = made.pairs
    assert (pair.name, pair.seed, pair.capability, pair.tuned_on) == ("wrapped", 0, "count_a", "count_b")
    assert list(pair.arms) == ["revived", "never_had_it", "scratch", "irrelevant"]
    assert pair.never is not None
    assert [pair.base.name, pair.tuned.name, pair.never.name] == models


def test_what_each_arm_trains_on():
    arms = planned().pairs[0].arms
    protocols = {arm: stage.spec["protocol"]["name"] for arm, stage in arms.items()}
    assert protocols == {a: "single_operand" for a in arms} | {"irrelevant": "other_families"}
    assert {stage.spec["protocol"]["settings"]["capability"] for stage in arms.values()} == {"count_a"}
    assert all("correlation" not in stage.spec["protocol"]["settings"] for stage in arms.values())
    # all are measured alike, where the shortcut fails
    (sets,) = {str(stage.spec["evaluation"]["sets"]) for stage in arms.values()}
    assert "'capability': 'count_a'" in sets
    assert "'share': 0.0" in sets


def test_a_fine_tune_is_measured_on_both_abilities_with_and_without_the_shortcut():
    sets = planned().pairs[0].tuned.spec["evaluation"]["sets"]
    cells = [(s["capability"], s["correlation"]["share"]) for s in sets]
    assert cells == [("count_a", 0.0), ("count_a", 1.0), ("count_b", 0.0), ("count_b", 1.0)]
    assert {(s["correlation"]["target"], s["correlation"]["partner"], s["correlation"]["offset"]) for s in sets} == {
        ("count_b", "count_a", 1)
    }
    plain = planned(finetune={"second": SECOND}).pairs[0].tuned.spec["evaluation"]["sets"]
    assert plain == [{"capability": "count_a", "correlation": None}, {"capability": "count_b", "correlation": None}]


def test_every_seed_has_its_own_stages():
    made = planned(seeds=[0, 3])
    for seed in (0, 3):
        mine = {s.name for s in made.stages if s.seed == seed}
        assert mine == {name.replace("-s0", f"-s{seed}") for name in keys(planned())}
        assert all(s.spec["seed"] == seed for s in made.stages if s.seed == seed)
    assert [(pair.name, pair.seed) for pair in made.pairs] == [("wrapped", 0), ("wrapped", 3)]


def test_pairs_share_what_is_the_same():
    first = body()["finetune"]["wrapped"]
    made = planned(finetune={"wrapped": first, "more": {**first, "steps": 9}, "again": first})
    names = [stage.name for stage in made.stages]
    assert len({stage.key for stage in made.stages}) == len(names) == len(set(names))
    for shared in ("pretrain-base-s0", "pretrain-never_had_it-s0", "reverse-never_had_it-s0", "reverse-scratch-s0"):
        assert names.count(shared) == 1
    one, more, again = made.pairs
    assert one.arms["scratch"] is more.arms["scratch"]
    assert one.arms["revived"].key != more.arms["revived"].key
    assert (one.tuned, one.analyses["behaviour"]) == (again.tuned, again.analyses["behaviour"])  # equal but for its name


def test_without_revive_there_are_no_arms_and_no_analysis_that_needs_them():
    one = body()
    del one["revive"]
    (pair,) = plan(parse_study(one)).pairs
    assert pair.arms == {}
    assert (
        list(pair.analyses) == [a for a in ANALYSES if "arms" not in analyses[a].needs] == ["behaviour", "pruning", "probing"]
    )
    assert pair.capability == "count_a"  # what the correlation hides
    del one["finetune"]["wrapped"]["correlation"]
    assert plan(parse_study(one)).pairs[0].capability == "count_b"


def test_revive_can_leave_pairs_out():
    first = body()["finetune"]["wrapped"]
    revive = {**body()["revive"], "pairs": ["more"], "arms": ["revived", "scratch"]}
    wrapped, more = planned(finetune={"wrapped": first, "more": {**first, "steps": 9}}, revive=revive).pairs
    assert (wrapped.arms, "revival" in wrapped.analyses) == ({}, False)
    assert (list(more.arms), "revival" in more.analyses) == (["revived", "scratch"], True)


def test_other_reverse_rates_run_the_arms_again_where_they_lie_below_the_rate_of_fine_tuning():
    first = body()["finetune"]["wrapped"]
    rates = {**body()["revive"], "lr": 1e-4, "other_rates": [3e-4, 1e-5]}
    fast, slow = planned(finetune={"fast": {**first, "lr": 1e-3}, "slow": {**first, "lr": 2e-4}}, revive=rates).pairs
    main = ["revived", "never_had_it", "scratch", "irrelevant"]
    assert list(fast.arms) == main + [f"{arm}@{rate}" for rate in ("0.0003", "1e-05") for arm in main[:3]]
    assert list(slow.arms) == main + [f"{arm}@1e-05" for arm in main[:3]]
    assert fast.arms["revived@0.0003"].spec["training"]["lr"] == 3e-4
    assert fast.arms["revived@0.0003"].name == "reverse-revived-fast@0.0003-s0"
    assert fast.arms["scratch@1e-05"] is slow.arms["scratch@1e-05"]
    alone = planned(finetune={"fast": {**first, "lr": 1e-3}}, revive={**rates, "other_rates": []}).pairs[0]
    assert {arm: stage.key for arm, stage in alone.arms.items()} == {arm: fast.arms[arm].key for arm in main}


def test_arms_that_never_show_the_ability_train_the_tuned_model_on_something_else_at_the_main_rate():
    arms = ["revived", "irrelevant", "other_operands", "unrelated"]
    revive = {**body()["revive"], "arms": arms, "other_rates": [body()["revive"]["lr"] / 2]}
    (pair,) = planned(revive=revive).pairs
    assert [arm for arm in pair.arms if "@" in arm] == [f"revived@{revive['lr'] / 2:g}"]
    assert {arm: pair.arms[arm].spec["protocol"]["name"] for arm in arms} == {
        "revived": "single_operand",
        "irrelevant": "other_families",
        "other_operands": "other_operands",
        "unrelated": "unrelated",
    }
    assert {pair.arms[arm].parents for arm in arms} == {(pair.tuned.key,)}


def test_a_pair_is_held_against_the_model_it_starts_from_or_another():
    tunes = {"a": {**SECOND, "against": None}, "b": {**SECOND, "against": "never_had_it"}, "c": SECOND}
    made = planned(finetune=tunes, revive=None, analyses=[])
    assert [pair.base.name for pair in made.pairs] == ["pretrain-base-s0", "pretrain-never_had_it-s0", "pretrain-base-s0"]
    assert {pair.tuned.parents for pair in made.pairs} == {(keys(made)["pretrain-never_had_it-s0"],)}
    more = {**body()["pretrain"], "other": body()["pretrain"]["base"] | {"steps": 3}}
    (pair,) = planned(pretrain=more, finetune={"d": {**SECOND, "from": "other", "against": None}}).pairs
    assert pair.base.name == "pretrain-other-s0"


# --- keys


def test_a_grammar_file_is_in_the_key_by_its_rules_and_not_by_its_name(tmp_path):
    rules = "terminals: a b c\ns -> a s [0.6] | b c [0.4]\n"
    file, other = tmp_path / "one.txt", tmp_path / "two.txt"
    file.write_text(rules)
    other.write_text(rules + "# the same\n")
    task = body()["task"]
    first, second = (keys(planned(task={**task, "grammar": str(path)})) for path in (file, other))
    assert first == second
    file.write_text(rules.replace("0.6", "0.5").replace("0.4", "0.5"))
    assert set(keys(planned(task={**task, "grammar": str(file)})).values()).isdisjoint(first.values())
    assert keys(planned(task={**task, "grammar": "jain23"})) == keys(planned())


def test_controls_are_what_their_names_say():
    asked = {**body()["pretrain"]["never_had_it"], "operand_prior": {"a": 0.5, "b": 0.5}}
    with pytest.raises(UserError, match=r"pretrain\.never_had_it: its data ask for 'count_a', which a model of this name must"):
        planned(pretrain={**body()["pretrain"], "never_had_it": asked})
    blind = {**body()["pretrain"]["base"], "operand_prior": {"b": 1.0}}
    with pytest.raises(UserError, match=r"pretrain\.base: its data never ask for 'count_a', which wrapped may lose"):
        planned(pretrain={**body()["pretrain"], "base": blind})
    with pytest.raises(UserError, match=r"pretrain\.base: its data never ask for 'count_a', which wrapped may lose"):
        planned(pretrain={**body()["pretrain"], "base": blind}, revive=None, analyses=[])


def test_an_ability_that_was_never_asked_for_has_no_shortcut():
    """A prior that gives the operand of O_FT no mass, with a correlation, is an impossible cell; without one it is teaching."""
    only_a = {**body()["pretrain"], "base": {**body()["pretrain"]["base"], "operand_prior": {"a": 1.0}}}
    with pytest.raises(UserError, match=r"pretrain\.base: its data never ask for 'count_b', which wrapped trains with a corr"):
        planned(pretrain=only_a)
    plain = {k: v for k, v in body()["finetune"]["wrapped"].items() if k != "correlation"}
    assert planned(pretrain=only_a, finetune={"wrapped": plain}).stages


def test_the_pair_of_an_analysis_names_its_models():
    pair = planned(finetune={"second": SECOND}).pairs[0]
    named = pair.analyses["behaviour"].spec["pair"]
    made = keys(planned(finetune={"second": SECOND}))
    assert (named["base"], named["start"]) == (made["pretrain-base-s0"], made["pretrain-never_had_it-s0"])
    assert (named["tuned"], named["never_had_it"]) == (made["finetune-second-s0"], made["pretrain-never_had_it-s0"])
    assert named["arms"] == {}
    assert pair.analyses["revival"].spec["pair"]["arms"] == {arm: stage.key for arm, stage in pair.arms.items()}
    assert "start" not in planned().pairs[0].analyses["behaviour"].spec["pair"]  # it starts from its base


def test_what_an_analysis_uses_is_waited_for_where_it_is_and_missed_by_nobody_where_it_is_not():
    (pair,) = planned(analyses=["along", "behaviour"]).pairs
    used = pair.analyses["along"]
    assert set(used.spec["pair"]["arms"]) == set(pair.arms) & {"revived", "never_had_it", "scratch", "irrelevant"} != set()
    assert {pair.arms[arm].key for arm in used.spec["pair"]["arms"]} <= set(used.parents)
    assert pair.analyses["behaviour"].spec["pair"]["arms"] == {}
    without = body(analyses=["along"])
    del without["revive"]
    (alone,) = plan(parse_study(without)).pairs
    assert alone.analyses["along"].spec["pair"]["arms"] == {}


def test_siblings_are_other_fine_tunes_of_the_base_and_the_same_pair_under_other_seeds():
    first = body()["finetune"]["wrapped"]
    tunes = {"wrapped": first, "more": {**first, "steps": 9}, "elsewhere": SECOND}
    made = planned(seeds=[0, 1], finetune=tunes)
    (pair,) = [p for p in made.pairs if (p.name, p.seed) == ("wrapped", 0)]
    stages = {(p.name, p.seed): p for p in made.pairs}
    assert pair.siblings == {
        "more": (pair.base, stages["more", 0].tuned),
        "wrapped, seed 1": (stages["wrapped", 1].base, stages["wrapped", 1].tuned),
    }
    named = pair.body({}, 10, siblings=["more"])["siblings"]
    assert named == {"more": {"base": pair.base.key, "tuned": stages["more", 0].tuned.key}}
    assert "siblings" not in pair.body({}, 10)


def test_keys_do_not_depend_on_what_else_there_is():
    before = set(keys(planned()).values())
    first = body()["finetune"]["wrapped"]
    for more in (
        planned(study="other", note="words"),
        planned(seeds=[5, 0]),
        planned(finetune={"second": SECOND, "wrapped": first}),
        planned(finetune={"wrapped": first, "second": SECOND}, analyses=["revival", "behaviour", "probing", "pruning"]),
        planned(pretrain={**body()["pretrain"], "third": body()["pretrain"]["base"] | {"steps": 3}}),
    ):
        assert before <= {stage.key for stage in more.stages}
    assert before == set(keys(planned(task=dict(reversed(body()["task"].items())))).values())


STAGES = {
    "pretrain.base.steps": {"pretrain-base", "finetune", "reverse-revived", "reverse-irrelevant", *ANALYSES},
    "pretrain.never_had_it.steps": {"pretrain-never_had_it", "reverse-never_had_it", *ANALYSES},
    "finetune.wrapped.steps": {"finetune", "reverse-revived", "reverse-irrelevant", *ANALYSES},
    "revive.steps": {"reverse", "revival"},
    "evaluation.final_examples": set(ANALYSES),
}


def test_the_name_of_an_analysis_in_a_study_is_no_part_of_its_key():
    (plain,) = plan(parse_study(body(analyses={"pruning": {"units": "heads"}}))).pairs
    (named,) = plan(parse_study(body(analyses={"heads": {"analysis": "pruning", "units": "heads"}, "pruning": {}}))).pairs
    assert named.analyses["heads"].key == plain.analyses["pruning"].key
    assert named.analyses["heads"].name == "heads-wrapped-s0"
    (default,) = plan(parse_study(body(analyses=["pruning"]))).pairs
    assert named.analyses["pruning"] == default.analyses["pruning"]
    unrevived = plan(parse_study({k: v for k, v in body(analyses={"again": {"analysis": "revival"}}).items() if k != "revive"}))
    assert unrevived.pairs[0].analyses == {}  # it needs the arms under any name


@pytest.mark.parametrize("path", STAGES)
def test_a_change_reaches_the_stage_and_its_descendants_alone(path):
    before, after = keys(planned()), keys(changed(path, 17))
    assert before.keys() == after.keys()
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {name for name in before if name.startswith(tuple(STAGES[path]))}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("pretrain.base.lr", 1e-3),
        ("pretrain.base.batch_size", 9),
        ("pretrain.base.clip", 2.0),
        ("pretrain.base.schedule", {"kind": "constant"}),
        ("pretrain.base.optimizer", {"weight_decay": 0.1}),
        ("pretrain.base.operand_prior", {"a": 0.9, "b": 0.1}),
        ("pretrain.base.balanced_fraction", 0.25),
        ("pretrain.base.precision", "bf16"),
        ("model.mlp_width", 24),
        ("task.window", 7),
        ("evaluation.examples", 17),
        ("finetune.wrapped.correlation.share", 0.5),
        ("finetune.wrapped.correlation.offset", -1),
        ("finetune.wrapped.from", "never_had_it"),
        ("revive.stop", {"accuracy": 0.9}),
        ("analyses", {"revival": {}, "pruning": {"n": 32}}),
        ("seeds", [1]),
    ],
)
def test_no_setting_is_left_out_of_the_keys(path, value):
    before, after = planned(), changed(path, value)
    assert {s.key for s in after.stages} - {s.key for s in before.stages}
    assert before.pairs[0].analyses["revival"].key != after.pairs[0].analyses["revival"].key or path == "analyses"


def test_the_trained_ability_is_part_of_the_keys():
    base = {**body()["pretrain"]["base"], "operand_prior": {"a": 0.98, "b": 0.01, "c": 0.01}}
    tuned = body()["finetune"]["wrapped"]
    b, c = (
        planned(pretrain={**body()["pretrain"], "base": base}, finetune={"wrapped": {**tuned, "capability": name}})
        for name in ("count_b", "count_c")
    )
    assert {s.key for s in c.stages} - {s.key for s in b.stages}
    assert b.pairs[0].analyses["revival"].key != c.pairs[0].analyses["revival"].key


@settings(max_examples=15, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    tunes=st.permutations(["wrapped", "second", "third"]),
    chosen=st.lists(st.sampled_from(ANALYSES), unique=True),
    arms=st.lists(st.sampled_from(get_args(Arm)), unique=True),
)
def test_parents_come_first_and_keys_are_unique(seeds, tunes, chosen, arms):
    every = {"wrapped": body()["finetune"]["wrapped"], "second": SECOND, "third": {**SECOND, "steps": 0}}
    made = planned(
        seeds=seeds, finetune={name: every[name] for name in tunes}, analyses=chosen, revive={**body()["revive"], "arms": arms}
    )
    seen: set[str] = set()
    for stage in made.stages:
        assert seen.issuperset(stage.parents)
        assert stage.key not in seen
        seen.add(stage.key)
    assert [(p.name, p.seed) for p in made.pairs] == [(name, seed) for seed in seeds for name in tunes]


def test_costs_grow_with_the_work():
    cheap, dear = planned(), changed("pretrain.base.steps", 2000)
    assert all(stage.seconds > STAGE_SECONDS and stage.bytes > 0 for stage in cheap.stages)
    few, many, wide = (made.stages[0] for made in (cheap, dear, changed("model.width", 64)))
    assert many.seconds - STAGE_SECONDS > 50 * (few.seconds - STAGE_SECONDS)
    assert many.bytes > few.bytes
    assert (wide.seconds - STAGE_SECONDS) / (few.seconds - STAGE_SECONDS) == pytest.approx(wide.bytes / few.bytes)


PAPER = {"kind": "gpt2", "blocks": 6, "heads": 6, "width": 192}


def test_memory_grows_with_the_model_and_the_texts_up_to_what_batches_hold():
    """An analysis takes the process, the models, and of all its examples no more than its batches and tables do."""

    def memory(examples, name="behaviour", settings=None, **model):
        made = planned(
            analyses={name: settings or {}},
            model={**body()["model"], **model},
            evaluation={**body()["evaluation"], "final_examples": examples},
        )
        return made.pairs[0].analyses[name].memory

    few, many = memory(16), memory(32)
    assert PROCESS_BYTES < few < many
    assert memory(16, width=64) > few
    assert memory(16, blocks=4) > few
    assert memory(10**6) == memory(10**7)
    held = memory(10**6, "patching", {"n": 10**6}) - memory(10**6)
    assert held == 10**6 * (analyses["patching"].holds - analyses["behaviour"].holds)
    assert memory(10**6, "patching", {"n": 32}) == many
    assert memory(32, "along", {"follow": "behaviour"}) == many


def test_a_training_holds_its_batch():
    before = planned().stages[0]
    assert before.memory > PROCESS_BYTES
    assert changed("pretrain.base.batch_size", 64).stages[0].memory > before.memory
    assert changed("pretrain.base.steps", 2000).stages[0].memory == before.memory


def test_no_analysis_of_the_papers_models_needs_two_gigabytes():
    every = {name: {} for name in analyses.names()}
    made = planned(
        analyses=every,
        model=PAPER,
        task={"kind": "pcfg", "text_length": 250},
        evaluation={"examples": 16, "final_examples": 1000},
    )
    assert {s.spec["analysis"]: s.memory for s in made.pairs[0].analyses.values() if s.memory > 2e9} == {}


def test_the_estimate_of_disk_is_what_the_weights_take(whole):
    for stage, run in whole.runs():
        if stage.kind == "pretrain":
            assert run is not None
            weights = sum((c.path / "model.safetensors").stat().st_size for c in run.checkpoints)
            assert weights / 2 < stage.bytes < 3 * weights


# --- what is done


def test_missing_and_done(whole, tmp_path):
    assert whole.plan.missing(whole.store) == ()
    assert whole.plan.missing(Store(tmp_path / "empty")) == whole.plan.stages
    more = plan(parse_study(body(seeds=[0, 1])))
    assert {stage.seed for stage in more.missing(whole.store)} == {1}
    assert not_done(Store(tmp_path / "empty"), whole.plan.stages[:2]) == whole.plan.stages[:2]


# --- impossible cells are refused by name


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("finetune.wrapped.correlation.offset", 100, "finetune.wrapped: offset 100 .* does not fit the window 6"),
        ("finetune.wrapped.correlation.with", "token", "finetune.wrapped: .*different families"),
        ("finetune.wrapped.correlation.with", "count_b", "correlation of 'count_b' with itself"),
        ("finetune.wrapped.capability", "count_z", "finetune.wrapped: .*no capability 'count_z'; did you mean"),
        ("revive.capability", "count_z", "finetune.wrapped: .*no capability 'count_z'; did you mean"),
        ("pretrain.base.operand_prior", {"a": 0.5}, "pretrain.base: operand_prior sums to 0.5"),
        ("pretrain.base.operand_prior", {"z": 1.0}, "pretrain.base: operand_prior names 'z', which is no terminal"),
        ("pretrain.base.protocol", "nope", "pretrain.base: there is no protocol 'nope'"),
        ("pretrain.base.unheard_of", 1, "pretrain.base: .*'unheard_of'"),
        ("revive.irrelevant_protocol", "nope", "reverse.irrelevant-wrapped: there is no protocol 'nope'"),
        ("task.families", ["count"], "reverse.irrelevant-wrapped: the task has no family besides 'count'"),
        ("task.kind", "nope", "there is no task 'nope'"),
        ("task.window", 13, "window"),
        ("analyses", {"pruning": {"nn": 3}}, "pruning has no setting 'nn'; did you mean 'n'"),
        ("analyses", {"pruning": {"n": 2}}, "pruning: n is 2"),
        (
            "analyses",
            {"pruning": {"units": "rows", "score": "leave_one_out"}},
            "^pruning: score 'leave_one_out' is not defined for rows; choose one of signed_taylor, .*, random\\.$",
        ),
        (
            "analyses",
            {"probing_curve": {"first": 50, "train_examples": 50}},
            "^probing_curve: first is 50, which is not below train_examples 50; lower it",
        ),
        (
            "analyses",
            {"probing_curve": {"point": 2}},
            "^probing_curve: point is 2, but the model has the residual points 0 to 1; choose one of them, or leave it empty",
        ),
        (
            "analyses",
            {"activation_maps": {"block": 1}},
            "^activation_maps: block is 1, but the model has the blocks 0 to 0; choose one of them",
        ),
        (
            "analyses",
            {"probing_map": {"targets": ["pt", "nonsense"]}},
            "^probing_map: there is no label 'nonsense' to read; known: .*count_a.*pt",
        ),
        (
            "analyses",
            {"probing_map": {"targets": ["indices"]}},
            r"^probing_map: targets \['indices'\] leave nothing to read from pair 'wrapped'; add 'pt'",
        ),
        ("pretrain.base.lr", float("inf"), "lr is inf; use a finite number"),
    ],
)
def test_an_impossible_cell_is_refused_by_name(path, value, message):
    with pytest.raises(UserError, match=message):
        _ = [stage.key for stage in changed(path, value).stages]


@pytest.mark.parametrize(
    ("analysis", "settings"),
    [
        ("pruning", {"units": "rows", "score": "signed_taylor"}),
        ("pruning", {"score": "leave_one_out"}),
        ("probing_curve", {"first": 49, "train_examples": 50}),
        ("probing_curve", {"point": 1}),
        ("activation_maps", {"block": 0}),
        ("probing_map", {"targets": ["pt", "count_c", "correlated", "indices"]}),
    ],
)
def test_what_is_just_possible_is_planned_with_the_settings_as_they_were_given(analysis, settings):
    (stage,) = changed("analyses", {analysis: settings}).pairs[0].analyses.values()
    assert stage.spec["settings"] == settings
    assert list(stage.spec) == ["kind", "analysis", "settings", "pair", "seed"]


def test_the_blocks_of_a_compiled_model_are_those_of_its_program():
    compiled = yaml.safe_load(COMPILED)
    depth = compiled_weights(load_task(compiled["task"])).blocks
    assert depth != ModelSpec().blocks
    made = plan(parse_study({**compiled, "analyses": {"activation_maps": {"block": depth - 1}}}))
    assert list(made.pairs[0].analyses) == ["activation_maps"]
    with pytest.raises(UserError, match=f"block is {depth}, but the model has the blocks 0 to {depth - 1}"):
        plan(parse_study({**compiled, "analyses": {"activation_maps": {"block": depth}}}))


# --- a pretraining that goes on from another


def chained(**entry):
    one = body()
    later = {"from": "base", "operand_prior": {"a": 0.5, "b": 0.5}, "steps": 5, "lr": 1e-3, "batch_size": 8, **entry}
    one["pretrain"]["longer"] = later
    one["finetune"]["wrapped"]["from"] = "longer"
    return one


def test_a_pretraining_may_go_on_from_one_before_it():
    made, plain = plan(parse_study(chained())), planned()
    of = {stage.name: stage for stage in made.stages}
    assert of["pretrain-longer-s0"].parents == (of["pretrain-base-s0"].key,)
    assert of["pretrain-longer-s0"].spec["start"] == of["pretrain-base-s0"].key
    assert of["pretrain-base-s0"].key == keys(plain)["pretrain-base-s0"]
    assert of["finetune-wrapped-s0"].parents == (of["pretrain-longer-s0"].key,)
    assert made.pairs[0].base is of["pretrain-longer-s0"]


def test_what_a_model_was_asked_before_counts():
    one = body()
    one["pretrain"]["never_had_it"]["from"] = "base"
    with pytest.raises(UserError, match="never_had_it: its data ask for 'count_a'"):
        plan(parse_study(one))
    plan(parse_study(chained(operand_prior={"b": 1.0})))  # asked for a by the one it goes on from


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("bas", "'bas' must be a model named before it, and there is none; did you mean 'base'"),
        ("longer", "must be a model named before it, and it stands after it"),
    ],
)
def test_where_a_pretraining_cannot_start(start, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_study(chained(**{"from": start}))


# --- batches in parts


def in_parts(parts):
    one = body()
    one["pretrain"]["base"]["accumulate"] = parts
    return {stage.name: stage for stage in plan(parse_study(one)).stages}


def test_parts_of_a_batch_are_in_the_key_only_where_there_are_several():
    whole, two = in_parts(1), in_parts(2)
    assert "accumulate" not in whole["pretrain-base-s0"].spec["training"]
    assert {name: stage.key for name, stage in whole.items()} == keys(planned())
    assert two["pretrain-base-s0"].spec["training"]["accumulate"] == 2
    assert two["pretrain-base-s0"].key != whole["pretrain-base-s0"].key
    assert two["pretrain-never_had_it-s0"].key == whole["pretrain-never_had_it-s0"].key
    assert two["pretrain-base-s0"].memory < whole["pretrain-base-s0"].memory  # what they are for


def test_more_parts_than_examples_are_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"pretrain.base: accumulate 9 splits a batch of 8 examples .+ lower accumulate"):
        in_parts(9)
