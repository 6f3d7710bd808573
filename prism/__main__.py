"""The `prism` command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

import typer

COMMANDS = {
    "run": "prism.commands.run",
    "server": "server.__main__",
    "client": "client.__main__",
    "sample": "prism.commands.sample",
    "evaluate": "prism.commands.evaluate",
    "partition": "prism.commands.partition",
    "privacy": "prism.commands.privacy",
    "relay": "prism.commands.relay",
    "comm": "prism.commands.comm",
}
"""Where each subcommand lives, as a function of its own name."""


def build(names: Iterable[str]) -> typer.Typer:
    """A command line with the subcommands of these names."""
    app = typer.Typer(
        name="prism",
        help="Federated training of generative models: one-bit masks over gRPC.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    # With a callback, typer keeps a lone subcommand a subcommand.
    app.callback()(lambda: None)
    for name in names:
        app.command(name)(getattr(importlib.import_module(COMMANDS[name]), name))
    return app


def main() -> None:
    """Run the command line, importing no more than the subcommand that was asked for."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    build([asked] if asked in COMMANDS else COMMANDS)()


if __name__ == "__main__":
    main()
