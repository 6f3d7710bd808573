"""The `prism` command: nothing is imported but the subcommand that was asked for."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, Final, NamedTuple

import typer
import typer.main
from typer.core import TyperGroup


class Subcommand(NamedTuple):
    """Where a subcommand lives, as a function or a group of its own name, and its first line."""

    module: str
    help: str


COMMANDS: Final = {
    "run": Subcommand(
        "prism.commands.run", "Run a whole federation on this machine, in real processes."
    ),
    "check": Subcommand(
        "prism.commands.check", "Say what would keep a run from working, and what it would cost."
    ),
    "server": Subcommand(
        "server.__main__", "Run the server: open rounds, aggregate updates, keep the state."
    ),
    "client": Subcommand(
        "client.__main__", "Train on your own images with a server; the images stay here."
    ),
    "health": Subcommand(
        "prism.commands.health",
        "Ask a server whether it is well; the exit code says so, too.",
    ),
    "status": Subcommand(
        "prism.commands.status",
        "Show how a run goes: round, clients, who is waited for, errors.",
    ),
    "sample": Subcommand(
        "prism.commands.sample", "Draw images from a model file; no server, no data needed."
    ),
    "evaluate": Subcommand(
        "prism.commands.evaluate", "Compare a model's images with real ones, on named features."
    ),
    "partition": Subcommand(
        "prism.commands.partition", "Show how a config divides its data set among the clients."
    ),
    "privacy": Subcommand(
        "prism.commands.privacy", "Say what privacy holds for a client's images, and what does not."
    ),
    "config": Subcommand(
        "prism.commands.config",
        "Explain every key of a config, and what it may be.",
    ),
    "certs": Subcommand(
        "prism.commands.certs",
        "Make and show certificates of an authority of your own.",
    ),
    "relay": Subcommand(
        "prism.commands.relay", "Pass TCP connections on and count the bytes, exactly."
    ),
    "compare": Subcommand(
        "prism.commands.compare",
        "Show runs beside one another: quality, bytes, seconds, configs.",
    ),
    "comm": Subcommand(
        "prism.commands.comm", "Show what a run cost in bytes, from the codec to the socket."
    ),
}
_QUIET: Final[dict[str, Any]] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}


class _OnDemand(TyperGroup):
    """Lists placeholders; whatever needs a subcommand's options imports that one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else subcommand(name), rest


def subcommand(name: str) -> Any:
    """The click command of this name, which must be in `COMMANDS`."""
    found = getattr(importlib.import_module(COMMANDS[name].module), name)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(add_completion=False, **_QUIET)
    alone.command(name)(found)
    return typer.main.get_command(alone)


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(name="prism", cls=_OnDemand, no_args_is_help=True, **_QUIET)
    app.callback()(_options)
    for name, (_, short_help) in COMMANDS.items():
        app.command(name, short_help=short_help)(lambda: None)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from common.version import __version__

        typer.echo(f"prism {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train image generators where the images are: one-bit masks over gRPC."""
