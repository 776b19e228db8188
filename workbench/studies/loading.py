"""From a study file and its overrides to a `StudySpec`: presets, grids, and a sentence for every mistake."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from workbench.errors import UserError, complaint, did_you_mean, place
from workbench.studies.spec import StudySpec


def preset_names() -> tuple[str, ...]:
    """Bundled study files."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in files("workbench.presets").iterdir() if p.name.endswith(".yaml")))


def read_study(name_or_path: str | Path) -> str:
    """The text of a preset or of a file.

    Raises:
        UserError: neither exists, or the file cannot be read.
    """
    path = Path(name_or_path)
    if str(name_or_path) in preset_names():
        return files("workbench.presets").joinpath(f"{name_or_path}.yaml").read_text()
    try:
        if path.is_file():
            return path.read_text()
    except OSError as error:
        raise UserError(f"the study file {str(name_or_path)!r} cannot be read: {error.strerror}.") from error
    raise UserError(f"there is no study file or preset {str(name_or_path)!r}{did_you_mean(str(name_or_path), preset_names())}")


def load_study(name_or_path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None) -> StudySpec:
    """A study from a preset or file, with `a.b=c` overrides applied.

    Raises:
        UserError: a missing file, a YAML error, an unknown key or a value out of range, each with the place and the fix.
    """
    try:
        body = yaml.safe_load(read_study(name_or_path))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{name_or_path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise UserError(f"{name_or_path} is no study: it holds {type(body).__name__}, not keys such as 'study' and 'pretrain'.")
    body = cast(dict[str, Any], body)
    for override in overrides:
        section, _, rest = override.partition("=")[0].strip().partition(".")
        entries, entry = body.get(section), rest.partition(".")[0]
        if section in ("pretrain", "finetune") and "." in rest and isinstance(entries, dict) and entry not in entries:
            known = cast(dict[str, Any], entries)
            raise UserError(f"--set {override!r}: {section} has no entry {entry!r}{did_you_mean(entry, known)}")
        apply_override(body, override)
    if seeds:
        body["seeds"] = list(seeds)
    return parse_study(body, str(name_or_path))


def parse_study(body: Mapping[str, Any], origin: str = "study") -> StudySpec:
    """A study from plain data, grids expanded.

    Raises:
        UserError: as `load_study`.
    """
    expanded = copy.deepcopy(dict(body))
    for section in ("pretrain", "finetune"):
        entries = expanded.get(section)
        if isinstance(entries, dict):
            expanded[section] = _expand_grids(cast(dict[str, Any], entries), section)
    try:
        return StudySpec.model_validate(expanded)
    except ValidationError as error:
        raise UserError(f"{origin}: {_sentence(error)}") from error


def apply_override(body: dict[str, Any], override: str) -> None:
    """Set one value of nested plain data from `a.b=c`; the value is read as YAML.

    Raises:
        UserError: no '=', a value that is not YAML, or a path through something that is not a section.
    """
    path, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override!r} has no '='; write it as section.key=value.")
    try:
        _set(body, path.strip(), yaml.safe_load(value), f"--set {override!r}")
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: {value!r} is not valid YAML: {' '.join(str(error).split())}") from error


def _set(body: dict[str, Any], path: str, value: Any, origin: str) -> None:
    *sections, last = path.split(".")
    place: Any = body
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{origin}: {section!r} is not a section of the study.")
    place[last] = number_or(value)


def number_or(value: Any) -> Any:
    """YAML 1.1 reads `3e-4` as text; people mean a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _expand_grids(entries: dict[str, Any], section: str) -> dict[str, Any]:
    """`grid: {lr: [a, b], correlation.share: [0, 1]}` makes one entry per combination, named by its values."""
    out: dict[str, Any] = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or "grid" not in entry:
            out[name] = entry
            continue
        rest = {key: value for key, value in cast(dict[str, Any], entry).items() if key != "grid"}
        axes: Any = entry["grid"]
        if not isinstance(axes, dict) or not all(isinstance(v, list) and v for v in axes.values()):
            raise UserError(f"{section}.{name}.grid must name keys with lists of values, such as {{lr: [1.0e-4, 3.0e-4]}}.")
        names = [str(key) for key in axes]
        for values in itertools.product(*axes.values()):
            member = copy.deepcopy(rest)
            for key, value in zip(names, values, strict=True):
                _set(member, key, copy.deepcopy(value), f"{section}.{name}.grid")
            label = ",".join(f"{key.split('.')[-1]}={value}" for key, value in zip(names, values, strict=True))
            if f"{name},{label}" in {**entries, **out}:
                raise UserError(f"{section}.{name}.grid makes two entries called {f'{name},{label}'!r}; drop one.")
            out[f"{name},{label}"] = member
    return out


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        *parents, key = [str(part) for part in first["loc"]]
        return f"unknown key {key!r} in {'.'.join(parents) or 'the study'}{did_you_mean(key, _known_keys(parents))}"
    if first["type"] == "missing":
        return f"{place(first['loc'])} is missing; add it."
    return complaint(first)


def _known_keys(parents: Sequence[str]) -> list[str]:
    """Keys allowed in a section, found by walking the models along the path."""
    model: Any = StudySpec
    for part in parents:
        field = getattr(model, "model_fields", {}).get(part)
        annotation = field.annotation if field else model
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return [f.alias or name for name, f in model.model_fields.items()]
