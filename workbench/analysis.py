"""What makes a function an analysis: settings checked, subject untouched, provenance written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import UserError, complaint, did_you_mean, place
from workbench.results import Result
from workbench.subjects import Pair, Question

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Settings of an analysis; their schema draws the form in the app."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read(name: str, schema: type[S], values: Mapping[str, Any]) -> S:
    """Settings of what is called `name`, from plain data.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    try:
        return schema(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            key = place(first["loc"])
            raise UserError(f"{name} has no setting {key!r}{did_you_mean(key, schema.model_fields)}") from error
        raise UserError(f"{name}: {complaint(first)}") from error


class Analysis(Generic[S]):
    """A decorated analysis: call it with a subject and settings by name."""

    def __init__(
        self,
        function: Callable[[Pair, S], Result],
        schema: type[S],
        version: int,
        paper: str,
        check: Callable[[S, Question, int], None] | None = None,
        uses: tuple[str, ...] = (),
    ) -> None:
        self.function, self.schema, self.version, self.paper, self.fits = function, schema, version, paper, check
        self.uses = uses
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, function.__module__

    def settings(self, values: Mapping[str, Any]) -> S:
        """Settings from plain data.

        Raises:
            UserError: an unknown name or a value out of range.
        """
        return read(self.__name__, self.schema, values)

    def check(self, values: Mapping[str, Any], question: Question, blocks: int) -> None:
        """Refuse settings that this analysis could not honour on a pair that is yet to be trained.

        Args:
            values: settings as plain data.
            question: what the pair will be asked.
            blocks: number of blocks of its models.

        Raises:
            UserError: as `settings`, or what is asked for is not in such models or such a task.
        """
        settings = self.settings(values)
        if self.fits is not None:
            self.fits(settings, question, blocks)

    def __call__(self, subject: Pair, **values: Any) -> Result:
        """Run on a subject.

        Raises:
            UserError: settings that do not fit.
            RuntimeError: the analysis changed a model that it was given.
        """
        from workbench.models.fingerprint import check_unchanged, weights_sha256

        if not isinstance(subject, Pair):  # pyright: ignore[reportUnnecessaryIsInstance]  # people pass names
            raise UserError(f"{self.__name__} looks at a pair, not at {subject!r}; give it study.pair('wrapped', seed=0), say.")
        settings = self.settings(values)
        revived = subject.revived if "revived" in self.uses else None
        models = [m for m in (subject.base, subject.tuned, subject.never_had_it, revived) if m is not None]
        started = time.monotonic()
        with check_unchanged(*models):
            result = self.function(subject, settings)
        provenance = {
            "pair": subject.name,
            "seed": subject.seed,
            "capability": subject.capability,
            "tuned_on": subject.tuned_on,
            "paper": self.paper,
            "version": self.version,
            "dtype": str(subject.base.dtype).removeprefix("torch."),
            "device": str(subject.base.device),
            "base_sha256": weights_sha256(subject.base),
            "tuned_sha256": weights_sha256(subject.tuned),
            "seconds": round(time.monotonic() - started, 2),
        }
        return replace(result, name=self.__name__, settings=settings.model_dump(mode="json"), provenance=provenance)


def analysis(
    *,
    version: int,
    paper: str = "",
    needs: tuple[str, ...] = (),
    uses: tuple[str, ...] = (),
    passes: int = 60,
    holds: int = 500,
    n: int | None = None,
    group: str = "evidence",
    check: Callable[[S, Question, int], None] | None = None,
) -> Callable[[Callable[[Pair, S], Result]], Analysis[S]]:
    """Declare an analysis; all arguments but `check` are literals, since the registry reads them without importing the module.

    `version` is raised when the same subject and settings would give other numbers. `needs` names parts of the pair
    that must be ready: `arms`. `uses` names arms (or `siblings`: other fine-tunes) that it looks at where the pair has them.
    `passes` says about how many forward passes over a test set it costs, `holds` how many megabytes it holds at most beside the
    models, `n` its default number of examples where that is not the study's: a plan's estimate rests on them. `group` names its page.
    `check(settings, question, blocks)` raises `UserError` on settings that no pair with that question and number of blocks
    can honour, so that a plan refuses them before anything is trained.
    """
    del needs, passes, holds, n, group  # read by the registry, from the source

    def declare(function: Callable[[Pair, S], Result]) -> Analysis[S]:
        from typing import get_type_hints

        return Analysis(function, get_type_hints(function)["settings"], version, paper, check, uses)

    return declare
