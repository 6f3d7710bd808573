"""Reproducible measurements, each runnable on its own, each with --json."""
