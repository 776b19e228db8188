"""Reading of settings: pydantic models whose errors are one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import UserError, did_you_mean


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
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UserError(f"{where} needs the setting {path!r}; add it.") from None
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where} has no setting {path!r}; remove it.") from None
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where} setting {path!r} is {first['input']!r}: {message[:1].lower()}{message[1:]}.") from None
