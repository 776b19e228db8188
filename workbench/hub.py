"""The Hugging Face hub: where its caches are, whether it may be asked, and its refusals as one sentence each."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import UserError
from workbench.files import DiskFull, is_disk_full

PATIENCE = 10
"""Seconds until a hub that does not answer counts as unreachable."""
_CLIENTS = ("httpx", "httpx2", "httpcore", "requests")


class Unreachable(UserError):
    """Neither the hub nor its cache has what was asked for."""


def home() -> Path:
    """The folder of Hugging Face's caches: `HF_HOME`, as it is set now, or the default."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HOME") or constants.HF_HOME).expanduser()


def cache() -> Path | str | None:
    """The folder of downloads for `snapshot_download`; set after the import of the library, HF_HOME would not be seen by it."""
    return os.environ.get("HF_HUB_CACHE") or (home() / "hub" if os.environ.get("HF_HOME") else None)


def offline() -> bool:
    """Whether `HF_HUB_OFFLINE` is set, now or when huggingface_hub was imported."""
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"} or constants.HF_HUB_OFFLINE


@contextmanager
def asking(kind: str, name: str, revision: str | None, instead: str) -> Generator[None]:
    """The refusals of the hub and its library, as one sentence.

    Args:
        kind: `data set` or `model`.
        name: owner/name.
        revision: branch, tag or commit; None for the default branch.
        instead: what else may be given, as in "a local folder".

    Raises:
        Unreachable: the hub cannot be reached and its cache lacks it.
        UserError: there is no such name or revision, or it is not open to you.
        DiskFull: no room for it.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise UserError(f"{name!r} is no name of a hub {kind}; write owner/name, {instead}.") from None
    except errors.GatedRepoError:
        raise UserError(f"the {kind} {name!r} is gated; accept its terms on the hub and log in (hf auth login).") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the hub has no {kind} {name!r} that you may read; check the name, or log in (hf auth login)."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"the {kind} {name!r} has no revision {revision!r}; give a branch, a tag or a commit of it.") from None
    except Exception as error:  # the library lets its HTTP client's own errors through, and has changed that client before
        if is_disk_full(error):
            raise DiskFull(f"the {kind} {name!r} was not fetched because the disk or your quota is full; make room.") from error
        if not isinstance(error, OSError | errors.HfHubHTTPError) and type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        raise unreachable(kind, name, revision, instead) from error


def unreachable(kind: str, name: str, revision: str | None, instead: str) -> Unreachable:
    """Says that neither the hub nor its cache has something, and what to do; see `asking`."""
    why = "HF_HUB_OFFLINE is set and its cache lacks it" if offline() else "the hub cannot be reached and its cache lacks it"
    at = f" at revision {revision!r}" if revision else ""
    return Unreachable(
        f"the {kind} {name!r}{at} was not loaded because {why}; fill the cache on a machine with a network and copy HF_HOME "
        f"(then HF_HUB_OFFLINE=1 works), or give {instead}."
    )
