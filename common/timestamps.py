"""Times of day, as they stand in files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal


def utc_now(timespec: Literal["seconds", "milliseconds"] = "milliseconds") -> str:
    """Now, ISO 8601 in UTC: 2025-01-31T23:59:59.123+00:00."""
    return datetime.now(UTC).isoformat(timespec=timespec)
