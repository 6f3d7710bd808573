"""Fixtures for every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support_client import Clock

import client.loop
from client.trainer import LocalResult, Trainer
from common.state import GlobalState


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, as in a client of a run on one machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the client's loop, which nobody waits for."""
    clock = Clock()
    monkeypatch.setattr(client.loop, "time", clock)
    monkeypatch.setattr(client.loop, "random", clock)
    return clock


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rounds that clients train, in order."""
    rounds: list[int] = []
    train = Trainer.train

    def counted(self: Trainer, state: GlobalState, name: str, *rest: Any) -> LocalResult:
        rounds.append(state.round)
        return train(self, state, name, *rest)

    monkeypatch.setattr(Trainer, "train", counted)
    return rounds
