"""Killed at random instants, a federation leaves what it leaves undisturbed.

A few kills here; `make test-faults` has many: PRISM_KILLS says how many of the server, and
PRISM_CLIENT_KILLS how many of clients.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from support import NAMES, running, tiny_config
from support_faults import Federation, killed_in_mid_upload, left

KILLS = int(os.environ.get("PRISM_KILLS", "8"))
CLIENT_KILLS = int(os.environ.get("PRISM_CLIENT_KILLS", "3"))


def test_a_server_killed_at_random_instants(tmp_path: Path) -> None:
    # About a round goes by between two kills.
    config = tiny_config(rounds=6 + 2 * KILLS, alpha=0.3, output={"sample_every": 3})

    async def main() -> tuple[Federation, Federation]:
        undisturbed = Federation(config, tmp_path / "undisturbed")
        killed = Federation(config, tmp_path / "killed")
        await undisturbed.run(0)
        await killed.run(KILLS)
        return undisturbed, killed

    undisturbed, killed = asyncio.run(main())
    assert killed.kills == KILLS
    expected, found = (left(run.out, config) for run in (undisturbed, killed))
    assert len(expected["updates"]) == len(NAMES) * config.rounds
    for what, value in expected.items():
        assert found[what] == value, what
    updates = {(line["round"], line["client"]) for line in found["updates"]}
    assert killed.acknowledged <= updates


def test_clients_killed_in_mid_upload(tmp_path: Path) -> None:
    each = -(-CLIENT_KILLS // len(NAMES))
    config = tiny_config(
        rounds=1 + each,
        data={"min_class_size": 20, "labels": "ignore"},
        encoder={"layers": (3,), "pool": 1},
        train={"local_steps": 1, "batch_size": 2},
    )

    async def main(out: Path, kills: int) -> int:
        async with running(config, out, to_the_end=True) as address:
            lives = (
                killed_in_mid_upload(config, address, out / "clients", name, index, index, kills)
                for index, name in enumerate(NAMES)
            )
            return sum(await asyncio.gather(*lives))

    assert asyncio.run(main(tmp_path / "undisturbed", 0)) == 0
    assert asyncio.run(main(tmp_path / "killed", each)) == len(NAMES) * each
    assert left(tmp_path / "killed", config) == left(tmp_path / "undisturbed", config)
