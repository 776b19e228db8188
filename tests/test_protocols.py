"""Plug-ins are found by entry point and imported only when used."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import workbench.protocols as protocols
from workbench.errors import UserError
from workbench.protocols import Task, TrainingProtocol, installed, load_protocol, load_task


@pytest.fixture
def plug_in(monkeypatch):
    """Installs entry points for the length of a test: `plug_in(group, name, value)`."""
    points = []
    monkeypatch.setattr(protocols, "entry_points", lambda group: [p for p in points if p.group == group])
    protocols._installed.cache_clear()
    yield lambda group, name, value: points.append(EntryPoint(name, value, group))
    protocols._installed.cache_clear()


def test_what_is_installed_here_is_listed_sorted():
    assert "pcfg" in installed("tasks")
    strings = {"pretraining", "single_operand", "wrong_answers", "other_families", "other_operands", "mixed", "unrelated"}
    stories = {"stories", "instruct", "filter", "mix_and_match", "randomise", "refuse", "specialise", "other_stories"}
    assert list(installed("protocols")) == sorted({*strings, *stories})


def test_listing_imports_no_plug_in():
    code = "from workbench.protocols import installed; import sys; installed('tasks'); print('synthetic_tasks' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_package_of_ones_own_adds_a_task_and_a_protocol(plug_in):
    plug_in("workbench.tasks", "own", "types:MappingProxyType")
    plug_in("workbench.protocols", "mine", "builtins:print")
    plug_in("workbench.protocols", "a", "builtins:print")
    assert installed("tasks") == ("own",)
    assert installed("protocols") == ("a", "mine")
    assert protocols._load("tasks", "own").__name__ == "mappingproxy"


def test_unknown_names_are_answered_by_a_near_one(plug_in):
    plug_in("workbench.tasks", "pcfg", "builtins:dict")
    plug_in("workbench.protocols", "pretraining", "builtins:dict")
    with pytest.raises(UserError, match=r"there is no task 'pfcg'; did you mean 'pcfg'\?"):
        load_task({"kind": "pfcg"})
    task = object.__new__(type("T", (), dict.fromkeys(("vocab_size", "context", "capabilities", "resolved"), 0)))
    for name in ("family", "capability", "describe"):
        setattr(task, name, print)
    with pytest.raises(UserError, match=r"there is no protocol 'pretrain'; did you mean 'pretraining'\?"):
        load_protocol("pretrain", task, {}, 4, 0)


def test_a_task_section_is_not_changed_by_reading_it():
    section = {"kind": "pcfg", "families": ["count"]}
    task = load_task(section)
    assert isinstance(task, Task)
    assert section == {"kind": "pcfg", "families": ["count"]}
    assert set(map(task.family, task.capabilities)) == {"count"}
    with pytest.raises(UserError, match="familes"):
        load_task({"familes": ["count"]})  # pcfg when no kind is given


def test_a_protocol_gets_its_task_settings_batch_size_and_seed():
    task = load_task({"kind": "pcfg", "families": ["count"]})
    protocol, other = (load_protocol("pretraining", task, {}, 5, seed) for seed in (0, 1))
    assert isinstance(protocol, TrainingProtocol)
    assert protocol.batch_size == len(protocol.batch(0)) == 5
    assert not protocol.batch(3).tokens.equal(other.batch(3).tokens)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pretraining", {}),
        ("single_operand", {"capability": "count_a"}),
        ("wrong_answers", {"capability": "count_a"}),
        ("other_families", {"capability": "count_a"}),
    ],
)
def test_every_protocol_trains_on_the_answers_that_it_states(name, settings):
    """The loop takes targets from `answer` or from `tokens`, as is faster: they have to agree."""
    task = load_task({"kind": "pcfg", "families": ["count", "index"]})
    batch = load_protocol(name, task, settings, 32, 0).batch(2)
    places = batch.answer_position[:, None] + 1
    assert batch.tokens.gather(1, places).equal(batch.answer)
    assert batch.loss_mask.gather(1, places).all()
    assert not batch.loss_mask[:, 0].any()
