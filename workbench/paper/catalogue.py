"""Every procedural figure and table of the paper by name: what it shows, which study redoes it, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import UserError, did_you_mean
from workbench.paper.grid import Scale
from workbench.paper.views import View


@dataclass(frozen=True)
class Table:
    """A table of the paper: final accuracies of every cell, beside the printed ones."""

    published: str
    """Name of the printed table; one of models that were pretrained for 50K iterations shows the pairs of shorter pretraining."""


@dataclass(frozen=True)
class OfPair:
    """A figure that an analysis of one pair draws; the first pair with these axes is shown."""

    analysis: str
    where: dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """Histograms of the labels in training texts with and without the correlation."""

    target: str
    partner: str


@dataclass(frozen=True)
class Samples:
    """Prompts, drawn as text."""

    capability: str


@dataclass(frozen=True)
class Reproduction:
    """A figure or table of the paper (or a family of figures that differ in one setting)."""

    name: str
    title: str
    study: str
    """Preset at CPU scale; `<study>_paper` is the same at the paper's."""
    shows: View | Table | OfPair | Labels | Samples
    published: str | None = None
    """Printed table whose values are drawn beside the lines' ends."""

    @property
    def needs_models(self) -> bool:
        """Whether anything has to be trained for it; texts alone are drawn from the task."""
        return not isinstance(self.shows, Labels | Samples)

    def preset(self, scale: Scale) -> str:
        """The study that has to be run."""
        return self.study if scale == "cpu" else f"{self.study}_paper"


TWO = ("medium", "small")


def _both(number: str, title: str, reads: str, **more: Any) -> list[Reproduction]:
    """The same figure for counting and for indexing."""
    return [
        Reproduction(f"{number}-{noun}", f"{title} ({noun})", f"grid_{noun}", View(reads, **more), published)
        for noun, published in (
            ("counting", "table5_counter_200K" if reads == "accuracy" else None),
            ("indexing", "table7_index_200K" if reads == "accuracy" else None),
        )
    ]


LOW = {"prior": ["low"]}
CORE = {"prior": ["low", "medium", "high"]}


def _catalogue() -> list[Reproduction]:
    entries = [
        Reproduction(
            "fig5",
            "Learning what is fine-tuned on, by prior, rate and share of correlated texts",
            "grid_counting",
            View("accuracy", {**CORE, "rate_name": TWO}, "ft", "c_tr", "prior", ("rate_name", "share")),
            "table5_counter_200K",
        ),
        Reproduction(
            "fig6",
            "What becomes of the pretraining ability, by prior",
            "grid_counting",
            View("accuracy", {**CORE, "rate_name": TWO}, "pt", "c_tr", "prior", ("rate_name", "share")),
            "table5_counter_200K",
        ),
        Reproduction(
            "fig7",
            "Removing neurons after fine-tuning at the small rate",
            "grid_counting",
            View("pruning", {**LOW, "rate_name": ["small"]}, columns="c_tr", rows="prior"),
        ),
        Reproduction(
            "fig8",
            "Reading the pretraining answer from the residual stream",
            "grid_counting",
            View("probing", {**LOW, "rate_name": TWO}, "pt", columns="c_tr"),
        ),
        Reproduction(
            "fig9",
            "Reverse fine-tuning, by prior",
            "grid_counting",
            View("revival", {**CORE, "rate_name": ["medium"]}, columns="prior", rows="reverse_rate"),
        ),
        Reproduction(
            "fig10",
            "Attention of the compiled counter before and after fine-tuning",
            "compiled_counter",
            OfPair("attention_maps", {"share": [1.0], "rate_name": ["medium"]}),
        ),
        Reproduction("fig12", "A prompt of the compiled counter", "compiled_counter", Samples("count_a")),
        Reproduction("fig13", "A prompt of the compiled k-th largest", "compiled_largest", Samples("largest_5")),
        Reproduction("fig15", "A prompt of the grammar", "grid_counting", Samples("count_a")),
        Reproduction(
            "fig16-counting",
            "Labels of counting texts with and without the correlation",
            "grid_counting",
            Labels("count_b", "count_a"),
        ),
        Reproduction(
            "fig16-indexing",
            "Labels of indexing texts with and without the correlation",
            "grid_indexing",
            Labels("index_b", "index_a"),
        ),
        *_of_variants(),
        *_of_compiled(),
        *_both(
            "fig60-67",
            "Learning what is fine-tuned on, all rates",
            "accuracy",
            role="ft",
            lines="c_tr",
            columns="prior",
            rows=("rate_name", "share"),
            where={},
        ),
        *_both(
            "fig68-75",
            "What becomes of the pretraining ability, all rates",
            "accuracy",
            role="pt",
            lines="c_tr",
            columns="prior",
            rows=("rate_name", "share"),
            where={},
        ),
        *_both(
            "fig60-67-length",
            "Learning what is fine-tuned on, by length of pretraining",
            "accuracy",
            role="ft",
            lines="pretrain_steps",
            columns="prior",
            rows=("rate_name", "c_tr", "share"),
            where={**LOW, "rate_name": ["medium"], "share": [1.0]},
        ),
        *_both(
            "fig68-75-length",
            "What becomes of the pretraining ability, by length of pretraining",
            "accuracy",
            role="pt",
            lines="pretrain_steps",
            columns="prior",
            rows=("rate_name", "c_tr", "share"),
            where={**LOW, "rate_name": ["medium"], "share": [1.0]},
        ),
        *_both(
            "fig76-78-length",
            "Reverse fine-tuning by length of pretraining",
            "revival",
            lines="pretrain_steps",
            columns="prior",
            rows=("rate_name", "reverse_rate"),
            where={**LOW, "rate_name": ["medium"], "share": [1.0]},
        ),
        *_both(
            "fig76-78",
            "Reverse fine-tuning by prior and rate of fine-tuning",
            "revival",
            columns="prior",
            rows=("rate_name", "reverse_rate"),
            where={},
        ),
        *_both(
            "fig79-89",
            "Removing neurons by rate and share of correlated texts",
            "pruning",
            columns="c_tr",
            rows=("prior", "rate_name"),
            where={},
        ),
        *_both(
            "fig90-98",
            "Probes for the pretraining answer by rate and share",
            "probing",
            role="pt",
            columns="c_tr",
            rows=("prior", "rate_name"),
            where={},
        ),
        Reproduction("tab3-counter", "Fine-tuned compiled counters", "compiled_counter", Table("table3_tracr")),
        Reproduction("tab3-largest", "Fine-tuned compiled k-th largest", "compiled_largest", Table("table3_tracr")),
        Reproduction(
            "tab4",
            "Reverse fine-tuning of the compiled counter",
            "compiled_counter",
            View("revival", {"rate_name": ["medium"]}, columns="reverse_rate", rows=()),
        ),
        Reproduction("tab5", "Counting after fine-tuning, all cells", "grid_counting", Table("table5_counter_200K")),
        Reproduction("tab6", "Counting after shorter pretraining", "grid_counting", Table("table6_counter_50K")),
        Reproduction("tab7", "Indexing after fine-tuning, all cells", "grid_indexing", Table("table7_index_200K")),
        Reproduction("tab8", "Indexing after shorter pretraining", "grid_indexing", Table("table8_index_50K")),
    ]
    return entries


def _of_variants() -> list[Reproduction]:
    return [
        Reproduction(
            "fig18-21",
            "Mixing pretraining data into fine-tuning: the pretraining ability",
            "mixing",
            View("accuracy", {}, "pt", "pretraining_share", "prior", ("rate_name", "c_tr", "share")),
        ),
        Reproduction(
            "fig18-21-ft",
            "Mixing pretraining data into fine-tuning: the trained ability",
            "mixing",
            View("accuracy", {}, "ft", "pretraining_share", "prior", ("rate_name", "c_tr", "share")),
        ),
        Reproduction(
            "fig22-23",
            "Probes after mixing in pretraining data",
            "mixing",
            View("probing", {}, "pt", columns="pretraining_share", rows=("prior", "rate_name", "c_tr")),
        ),
        Reproduction(
            "fig24",
            "Counting by an identifier that fine-tuning never showed",
            "jailbreak",
            View("ends", {}, "all", columns="prior", rows=("rate_name", "c_tr")),
        ),
        Reproduction(
            "fig25",
            "Probes after fine-tuning on one of three identifiers",
            "jailbreak",
            View("probing", {}, "pt", columns="prior", rows=("rate_name", "c_tr")),
        ),
        Reproduction(
            "fig26",
            "Samples that revival takes, against models that never had the ability",
            "grid_counting",
            View("revival", {**CORE, "rate_name": TWO}, columns="prior", rows=("rate_name", "reverse_rate")),
        ),
        Reproduction(
            "fig28-29",
            "Revival after fine-tuning on wrong answers",
            "wrong_answers",
            View("revival", {}, lines="protocol", columns="prior", rows=("rate_name", "reverse_rate")),
        ),
        Reproduction(
            "fig30",
            "Probes after fine-tuning on wrong answers",
            "wrong_answers",
            View("probing", {}, "pt", columns="protocol", rows=("prior", "rate_name")),
        ),
    ]


def _of_compiled() -> list[Reproduction]:
    return [
        Reproduction(
            "fig27",
            "Reverse fine-tuning of compiled counters",
            "compiled_counter",
            View("revival", {"share": [1.0]}, lines="rate_name", columns="reverse_rate", rows=()),
        ),
        Reproduction(
            "fig39-45",
            "Attention of compiled counters by rate",
            "compiled_counter",
            OfPair("attention_maps", {"rate_name": ["small"], "share": [1.0]}),
        ),
        Reproduction(
            "fig46-47",
            "First MLP of the compiled counter before and after",
            "compiled_counter",
            OfPair("activation_maps", {"rate_name": ["medium"], "share": [1.0]}),
        ),
        Reproduction(
            "fig48-50",
            "Attention of compiled counters without the correlation",
            "compiled_counter",
            OfPair("attention_maps", {"rate_name": ["medium"], "share": [0.0]}),
        ),
        Reproduction(
            "fig51-52",
            "Attention of the compiled k-th largest",
            "compiled_largest",
            OfPair("attention_maps", {"rate_name": ["medium"], "share": [1.0]}),
        ),
        Reproduction(
            "fig53-54",
            "First MLP of the compiled k-th largest before and after",
            "compiled_largest",
            OfPair("activation_maps", {"rate_name": ["medium"], "share": [1.0]}),
        ),
        Reproduction(
            "fig55-57",
            "Removing single weights of compiled counters",
            "compiled_counter",
            View("pruning", {}, columns="c_tr", rows="rate_name"),
        ),
        Reproduction(
            "fig58",
            "Removing neurons of compiled counters",
            "compiled_counter",
            View("pruning", {}, columns="c_tr", rows="rate_name", entry="pruning_neurons"),
        ),
        Reproduction(
            "fig59",
            "Answers before and after removing weights: no collapse into one class",
            "compiled_counter",
            OfPair("pruning", {"rate_name": ["medium"], "share": [1.0]}),
        ),
    ]


def reproductions() -> dict[str, Reproduction]:
    """All entries by name."""
    return {entry.name: entry for entry in _catalogue()}


def get(name: str) -> Reproduction:
    """An entry by name.

    Raises:
        UserError: the paper has no such procedural figure or table.
    """
    entries = reproductions()
    if name not in entries:
        raise UserError(f"there is no figure or table {name!r}{did_you_mean(name, entries)}")
    return entries[name]
