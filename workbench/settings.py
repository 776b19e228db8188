"""Reading of settings: pydantic models whose errors are one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import UserError, complaint, did_you_mean, place


class Settings(BaseModel):
    """Base of all settings here: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def read_settings(model: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as a `model`.

    Raises:
        UserError: naming the first bad setting of `where`, its value, and what is wrong with it.
    """
    known = {field.alias or name for name, field in model.model_fields.items()}
    for key in values:
        if key not in known:
            raise UserError(f"{where} has no setting {key!r}{did_you_mean(str(key), known)}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            raise UserError(f"{where} needs the setting {place(first['loc'])!r}; add it.") from None
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where} has no setting {place(first['loc'])!r}; remove it.") from None
        raise UserError(f"{where}: {complaint(first)}") from None
