"""Killed at random instants, a federation leaves what it leaves undisturbed.

A few kills here; `make test-faults` has many: PRISM_KILLS says how many of the server.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from support import NAMES, tiny_config
from support_faults import Federation, left

KILLS = int(os.environ.get("PRISM_KILLS", "8"))


def test_a_server_killed_at_random_instants(tmp_path: Path) -> None:
    config = tiny_config(rounds=2 + KILLS, alpha=0.3, output={"sample_every": 3})

    async def main() -> tuple[Federation, Federation]:
        undisturbed = Federation(config, tmp_path / "undisturbed")
        killed = Federation(config, tmp_path / "killed")
        await undisturbed.run(0)
        await killed.run(KILLS)
        return undisturbed, killed

    undisturbed, killed = asyncio.run(main())
    assert killed.kills >= KILLS // 2
    expected, found = (left(run.out, config) for run in (undisturbed, killed))
    assert len(expected["updates"]) == len(NAMES) * config.rounds
    for what, value in expected.items():
        assert found[what] == value, what
    updates = {(line["round"], line["client"]) for line in found["updates"]}
    assert killed.acknowledged <= updates
