"""Every kind by its name in a study: the plan keeps it, the loop trains with it, and a run that was cut short goes on bit for bit."""

import pytest
import torch
import yaml
from studies.tiny import TINY

from workbench.errors import UserError
from workbench.models.build import build_model
from workbench.models.checkpoints import load_model, save_model
from workbench.models.spec import ModelSpec
from workbench.optimizers.spec import KINDS
from workbench.studies.loading import parse_study
from workbench.studies.plan import plan
from workbench.training.loop import Interrupted, train
from workbench.training.settings import TrainSettings
from workbench.training.state import load_state, save_state

CPU = torch.device("cpu")
RATES = {
    "sgd": 0.1,
    "sgdp": 0.1,
    "sgld": 0.3,
    "spherical_langevin": 0.3,
    "adagrad": 0.01,
    "adagrad_norm": 0.5,
    "frugal": 3e-3,
    "adabelief": 0.05,
}
STEPS, CUT = 8, 5


def study(**optimizer):
    body = {key: value for key, value in yaml.safe_load(TINY).items() if key not in ("finetune", "revive", "analyses")}
    body["pretrain"]["base"].update(
        optimizer=optimizer, steps=STEPS, lr=RATES.get(optimizer["kind"], 1e-2), schedule={"kind": "constant"}
    )
    return body


def settings(**optimizer):
    """As the stage of a study has them, written and read again."""
    (stage,) = [s for s in plan(parse_study(study(**optimizer))).stages if s.name == "pretrain-base-s0"]
    return TrainSettings(**stage.spec["training"])


class Same:
    """The same batch at every step, so that a loss can only fall by training."""

    batch_size = 8
    asks = frozenset()

    def __init__(self, examples):
        self.examples, self.asked = examples, 0

    def batch(self, step):
        self.asked += 1
        return self.examples


class Listener:
    def __init__(self, folder=None):
        self.folder = folder

    def step(self, step):
        self.loss = step.loss_nats

    def due(self):
        return False

    def grid(self, step, model, state, last):
        if last and self.folder is not None:
            save_model(model, self.folder)
            save_state(state(), self.folder)
        return False


def loss(model, examples):
    with torch.no_grad():
        logits = model(input_ids=examples.tokens).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), examples.tokens[:, 1:]).item()


@pytest.mark.parametrize("kind", KINDS)
def test_it_lowers_the_loss_and_cut_short_goes_on_bit_for_bit(random_examples, tmp_path, kind):
    said = settings(kind=kind, **({"update_gap": 3} if kind == "frugal" else {}))
    assert said.optimizer.kind == kind
    examples = random_examples(n=8)
    examples = type(examples)(**{**vars(examples), "loss_mask": torch.arange(10).expand(8, 10) > 0})

    def small():
        return build_model(ModelSpec(blocks=1, heads=2, width=16), 20, 12, 0)

    before = loss(small(), examples)
    whole = train(small(), Same(examples), said, Listener(), device=CPU, seed=4)
    assert loss(whole, examples) < before - 0.05
    source = Same(examples)
    with pytest.raises(Interrupted):
        train(small(), source, said, Listener(tmp_path), device=CPU, seed=4, should_stop=lambda: source.asked == CUT)
    resumed = train(load_model(tmp_path), Same(examples), said, Listener(), device=CPU, seed=4, resume=load_state(tmp_path))
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_kind_moves_the_keys_of_its_stage_and_what_follows():
    def keys(**optimizer):
        return {s.name: s.key for s in plan(parse_study(study(**optimizer))).stages}

    adamw, frugal, dense = keys(kind="adamw"), keys(kind="frugal"), keys(kind="frugal", density=0.5)
    assert len({k["pretrain-base-s0"] for k in (adamw, frugal, dense)}) == 3
    assert adamw["pretrain-never_had_it-s0"] == dense["pretrain-never_had_it-s0"]


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (
            {"kind": "diffgrad", "density": 0.5},
            r"^.*pretrain\.base\.optimizer: optimizer 'diffgrad' has no setting 'density'; known: .+$",
        ),
        (
            {"kind": "adabelif"},
            r"^.*pretrain\.base\.optimizer\.kind: there is no optimizer 'adabelif'; did you mean 'adabelief'.+$",
        ),
        ({"kind": "frugal", "density": 2}, r"pretrain\.base\.optimizer\.density is 2: it must be at most 1\."),
    ],
)
def test_a_study_that_asks_for_what_there_is_not_is_refused_with_its_place(optimizer, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_study(study(**optimizer))
