"""How many files, connections among them, a process may have open at once."""

from __future__ import annotations

import logging
import resource
from typing import Final

SPARE: Final = 256
"""Files that a process needs besides its connections."""

log = logging.getLogger(__name__)


def allow_connections(count: int) -> None:
    """Raise this process's limit so that it may have so many connections, or warn that it may not.

    The limit that is raised is the soft one; only an administrator can raise the hard one.
    """
    needed = count + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = needed if hard == unlimited else min(needed, hard)
    if soft != unlimited and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning(
            "%d connections need %d open files, and this process may have %d: "
            "raise its limit (ulimit -n %d, LimitNOFILE, --ulimit nofile)",
            count,
            needed,
            allowed,
            needed,
        )
