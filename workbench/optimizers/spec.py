"""What an optimizer is called and set to; reading it imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from workbench.errors import did_you_mean

Beta = Annotated[float, Field(ge=0, lt=1)]

KINDS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"betas": (0.9, 0.95), "momentum": 0.9, "weight_decay": 0.0},
    "sgd": {"betas": (0.9, 0.95), "momentum": 0.9, "weight_decay": 0.0},
    "diffgrad": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "version": "v2"},
    "adabelief": {
        "betas": (0.9, 0.999),
        "eps": 1e-16,
        "weight_decay": 0.0,
        "rectify": True,
        "degenerated_to_sgd": True,
        "weight_decouple": True,
        "fixed_decay": False,
        "amsgrad": False,
    },
    "adamp": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "delta": 0.1, "wd_ratio": 0.1, "nesterov": False},
    "sgdp": {
        "momentum": 0.9,
        "dampening": 0.0,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "delta": 0.1,
        "wd_ratio": 0.1,
        "nesterov": False,
        "project_buffer": True,
    },
    "frugal": {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "density": 0.25,
        "update_gap": 200,
        "projection": "columns",
        "inactive": "sign_sgd",
        "reset_statistics": True,
        "block_order": "random",
        "proj_params_lr_scale": 1.0,
        "inactive_lr_scale": 1.0,
    },
    "muon": {"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95), "weight_decay": 0.0},
    "sign_sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "adagrad": {"eps": 1e-8},
    "adagrad_norm": {"eps": 1e-8},
    "sgld": {"inverse_temperature": 1e6, "weight_decay": 0.0},
    "spherical_langevin": {"inverse_temperature": 1e6},
}
"""The settings of each kind and their values where a spec is silent: the authors', save that decay is 0 and SGDP's momentum .9."""
_ZOO = re.compile(r"zoo:\w+")
_OF_ZOO: Mapping[str, Any] = {"weight_decay": 0.0, "settings": {}}


class OptimizerSpec(BaseModel):
    """AdamW as in [Jain+23 §C.2] (betas of nanoGPT), SGD with momentum as in [Jain+23 §C.1], or any kind of docs/optimizers.md.

    A kind takes its own settings and no others; what is not said has the kind's value in `KINDS`. Both are in the keys of stages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(default="adamw", json_schema_extra={"anyOf": [{"enum": [*KINDS]}, {"pattern": f"^{_ZOO.pattern}$"}]})
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, description="on matrices only, never on biases or norms")
    eps: float | None = Field(default=None, ge=0)
    version: Literal["v1", "v2"] | None = Field(default=None, description="of diffgrad: the rule, or what first was published")
    rectify: bool | None = Field(default=None, description="of adabelief, as the next four")
    degenerated_to_sgd: bool | None = None
    weight_decouple: bool | None = None
    fixed_decay: bool | None = None
    amsgrad: bool | None = None
    delta: float | None = Field(default=None, ge=0, description="of adamp and sgdp: how small a cosine makes them project")
    wd_ratio: float | None = Field(default=None, ge=0, description="of adamp and sgdp: decay where they project")
    nesterov: bool | None = None
    dampening: float | None = Field(default=None, ge=0, lt=1)
    project_buffer: bool | None = Field(default=None, description="of sgdp: as in the authors' code, not in the paper")
    density: float | None = Field(default=None, ge=0, le=1, description="of frugal: share with AdamW's moments")
    update_gap: int | None = Field(default=None, ge=1, description="of frugal: updates between two draws")
    projection: Literal["columns", "rows", "coordinates", "blocks", "svd"] | None = None
    inactive: Literal["sign_sgd", "sgd", "no"] | None = Field(default=None, description="of frugal: the rule of the rest")
    reset_statistics: bool | None = None
    block_order: Literal["random", "ascending", "descending"] | None = None
    proj_params_lr_scale: float | None = Field(default=None, ge=0)
    inactive_lr_scale: float | None = Field(default=None, ge=0)
    inverse_temperature: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="of sgld and spherical_langevin"
    )
    settings: dict[str, Any] | None = Field(default=None, description="of zoo:NAME: what that optimizer takes")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS and not _ZOO.fullmatch(kind):
            raise ValueError(
                f"there is no optimizer {kind!r}{did_you_mean(kind, KINDS)} (zoo:NAME is one of pytorch-optimizer)"
            )
        return kind

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, body: Any) -> Any:
        """Refuse settings of other kinds, and fill in the kind's own."""
        if not isinstance(body, Mapping):
            return body
        said = {name: value for name, value in cast(Mapping[str, Any], body).items() if value is not None}
        kind = said.get("kind", "adamw")
        own = _own(kind) if isinstance(kind, str) else None
        if own is None:
            return said
        for name in said:
            if name in cls.model_fields and name != "kind" and name not in own:
                raise ValueError(f"optimizer {kind!r} has no setting {name!r}{did_you_mean(name, own)}")
        return {**own, **said}

    @model_serializer(mode="wrap")
    def _what_it_is(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The kind and its own settings, so that the keys of stages know nothing of other kinds' settings."""
        body = handler(self)
        return {name: body[name] for name in ("kind", *(_own(self.kind) or ())) if name in body}

    @property
    def own(self) -> dict[str, Any]:
        """The settings of its kind, decay aside, which belongs to groups of tensors."""
        return {name: getattr(self, name) for name in _own(self.kind) or () if name != "weight_decay"}


def _own(kind: str) -> Mapping[str, Any] | None:
    return KINDS.get(kind, _OF_ZOO if _ZOO.fullmatch(kind) else None)
