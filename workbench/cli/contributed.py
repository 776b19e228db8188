"""Commands that other packages bring: entry points of the group `workbench.commands`, each a Typer application.

None is imported before it is called or help is asked for, so that starting up costs nothing and a broken one harms no other.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from workbench.errors import UserError

GROUP = "workbench.commands"


def contributed() -> dict[str, EntryPoint]:
    """Commands by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


class Commands(TyperGroup):
    """The command line's own commands, then those of other packages."""

    # Any: Typer's releases differ in whether click's classes are click's or copies of their own.
    def list_commands(self, ctx: Any) -> list[str]:
        """All names; ours stand first, and none of them can be replaced."""
        own = super().list_commands(ctx)
        return [*own, *sorted(set(contributed()) - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, imported now where another package brings it."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        point = contributed().get(cmd_name)
        return None if point is None else _load(point)


def _load(point: EntryPoint) -> Any:
    try:
        found = point.load()
        if not isinstance(found, typer.Typer):
            raise TypeError(f"{point.value} is a {type(found).__name__} and no typer.Typer")
        command = typer.main.get_command(found)
    except Exception as error:  # whatever another package does when it is imported
        command = _broken(point, f"{type(error).__name__}: {error}")
    command.name = point.name
    return command


def _broken(point: EntryPoint, reason: str) -> Any:
    def fail() -> None:
        whose = f" of {point.dist.name}" if point.dist else ""
        raise UserError(f"the command {point.name!r}{whose} cannot be loaded ({reason}); mend or uninstall its package.")

    app = typer.Typer(add_completion=False)
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(point.name, help="Cannot be loaded; call it to see why.", context_settings=anything)(fail)
    return typer.main.get_command(app)
