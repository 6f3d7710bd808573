"""The `prism` command."""

from __future__ import annotations

import typer
from server.__main__ import server

from cli.run import run
from cli.sample import sample
from client.__main__ import client

app = typer.Typer(
    name="prism",
    help="Federated training of generative models: one-bit masks over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run, server, client, sample):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
