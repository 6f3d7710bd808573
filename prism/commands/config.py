"""`prism config`: every key there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prism.config_keys import Key, KeySection


def config(
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="Only keys with this in their name.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page docs/configuration.md.")
    ] = False,
) -> None:
    """Explain every key of a config, and what it may be.

    \b
    prism config
    prism config learning_rate
    prism config privacy.
    """
    from prism.config_keys import sections

    if markdown:
        typer.echo(page(sections()), nl=False)
        return
    found = 0
    for section in sections():
        keys = [key for key in section.keys if word is None or word in key.name]
        found += len(keys)
        if keys:
            typer.echo(
                f"[{section.name}]  {section.help}\n" if section.name else section.help + "\n"
            )
        for key in keys:
            typer.echo(f"  {key.name} = {key.default}\n      {key.type}\n      {key.help}\n")
    if not found:
        raise SystemExit(
            f"prism config: no key has {word!r} in its name; without it all are listed"
        )


def page(found: tuple[KeySection, ...]) -> str:
    """All keys as a page of tables."""
    parts = [_HEAD]
    for section in found:
        parts.append(f"## `[{section.name}]`\n" if section.name else "## Outside any section\n")
        rows = ["| key | default | type | what it is |", "| --- | --- | --- | --- |"]
        rows += map(_row, section.keys)
        parts.append(f"{section.help}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(key: Key) -> str:
    return f"| `{key.name}` | {key.default} | {key.type} | {key.help} |"


_HEAD = """# Configuration

A run is defined by one TOML file, which the server reads and clients receive. Every key has a
default; those of [configs/](../configs) are set for the data that they are named after. `--set
KEY=VALUE` changes a key on the command line, as in `--set train.local_steps=50`, and `prism check`
says what a config would cost before anything starts ([operations.md](operations.md)).

This page is `prism config --markdown` (`make docs`). A default of "-" follows from other keys, as
the last column says. All keys of `[round]`, `output.sample_every` and `output.evaluate_every` may
change when the server is started again; any other makes it another run.
"""
