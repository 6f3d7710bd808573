"""Whatever bytes a decoder is given, it reads them or says in one line why not.

A few thousand inputs here; `make fuzz` tries a million: PRISM_FUZZ says how many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support_fuzz_files
import support_fuzz_journal
import support_fuzz_wire
from support_fuzz import Target

COUNT = int(os.environ.get("PRISM_FUZZ", "6000"))


@pytest.mark.parametrize(
    ("share", "targets"),
    [
        (0.9, support_fuzz_wire.targets),
        (0.095, support_fuzz_files.targets),
        (0.005, support_fuzz_journal.targets),
    ],
    ids=["wire", "files", "journal"],
)
def test_reads_or_refuses(
    tmp_path: Path, share: float, targets: Callable[[Path], Iterator[Target]]
) -> None:
    every = list(targets(tmp_path))
    each = share * COUNT / sum(1 / target.cost for target in every)
    for target in every:
        for content in (*target.known(), *target.good):
            target.check(content)
        target.fuzz(round(each / target.cost) + 1)
