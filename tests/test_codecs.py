"""Every uplink codec: round trips, known answers, and what decoders refuse."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import comm
from common.codecs import (
    MASK_CODECS,
    SCORE_CODECS,
    WEIGHT_CODECS,
    CodecContext,
    MaskCodec,
    ScoreCodec,
    WeightCodec,
    mask_codec,
    score_codec,
    weight_codec,
)
from common.errors import PayloadError
from common.masks import pack, unpack
from common.rpc.prism.v1 import federation_pb2 as pb
from common.seeding import uniform16
from common.state import Probs, Scores, initial_scores, logit, sigma

KNOWN = json.loads((Path(__file__).parent / "known" / "codecs.json").read_text())

SCORES: dict[str, Callable[[int, np.random.Generator], NDArray[Any]]] = {
    "normal": lambda n, rng: rng.normal(0, 6000, n),
    "initial": lambda n, rng: initial_scores(n, int(rng.integers(100))),
    "zero": lambda n, _: np.zeros(n),
    "lowest": lambda n, _: np.full(n, -32768),
    "highest": lambda n, _: np.full(n, 32767),
    "limits": lambda n, rng: rng.choice([-32768, 32767], n),
    "clamps": lambda n, rng: logit(rng.choice(np.array([655, 64881], np.uint16), n)),
    "uniform": lambda n, rng: rng.integers(-32768, 32768, n),
}
DRIFTS: dict[str, Callable[[Probs, np.random.Generator], Probs]] = {
    "none": lambda p, _: p,
    "some": lambda p, rng: sigma(
        np.clip(logit(p) + rng.normal(0, 900, p.size), -32768, 32767).astype(np.int16)
    ),
    "unrelated": lambda p, rng: rng.integers(0, 65536, p.size).astype(np.uint16),
    "all zero": lambda p, _: np.zeros_like(p),
    "all one": lambda p, _: np.full_like(p, 65535),
}
SIZES = st.one_of(st.integers(1, 80), st.integers(81, 6000))


def make_scores(kind: str, n: int, rng: np.random.Generator) -> Scores:
    scores: Scores = np.clip(SCORES[kind](n, rng), -32768, 32767).astype(np.int16)
    return scores


def make_context(scores: Scores, share: float = 1.0, rank: int = 1) -> CodecContext:
    return CodecContext(
        seed=11, round=3, rank=rank, cohort_size=4, offset=64, scores=scores, share=share
    )


def synthetic(n: int, spread: int = 4, drift: int = 1024) -> tuple[Scores, Probs]:
    """A state and a client's probabilities from raw Philox words: equal on every platform."""
    state = (initial_scores(n, 5).astype(np.int32) * spread).clip(-32768, 32767)
    noise = initial_scores(n, 6).astype(np.int32) * drift // 2048
    client = (state + noise).clip(-32768, 32767)
    return state.astype(np.int16), sigma(client.astype(np.int16))


@settings(max_examples=300, deadline=None)
@given(
    codec=st.sampled_from(MASK_CODECS),
    n=SIZES,
    kind=st.sampled_from(sorted(SCORES)),
    drift=st.sampled_from(sorted(DRIFTS)),
    share=st.sampled_from([1.0, 0.5, 0.1, 0.0001]),
    seed=st.integers(0, 2**32),
)
def test_masks_survive_the_round_trip(
    codec: MaskCodec, n: int, kind: str, drift: str, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = make_scores(kind, n, rng)
    context = make_context(scores, share, rank=seed % 4)
    mask = codec.sample(DRIFTS[drift](sigma(scores), rng), context, rng)
    payload = codec.encode(mask, context)
    assert len(payload) <= codec.max_bytes(n)
    assert codec.decode(payload, context) == mask


@pytest.mark.parametrize("codec", MASK_CODECS, ids=lambda c: c.name)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("bit", [0, 1])
def test_any_mask_can_be_sent(codec: MaskCodec, n: int, bit: int) -> None:
    context = make_context(make_scores("limits", n, np.random.default_rng(0)))
    mask = pack(np.full(n, bit, dtype=np.uint8))
    payload = codec.encode(mask, context)
    assert len(payload) <= codec.max_bytes(n)
    assert codec.decode(payload, context) == mask


@pytest.mark.parametrize("codec", MASK_CODECS, ids=lambda c: c.name)
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_mask_streams_are_known(codec: MaskCodec, share: float) -> None:
    scores, probs = synthetic(20_011)
    context = make_context(scores, share)
    u = uniform16(probs.size, 9, "known-mask")
    mask = codec.sample(probs, context, np.random.default_rng(0))
    if codec.name != "flips":
        mask = pack(u < probs)
    stream = hashlib.sha256(codec.encode(mask, context)).hexdigest()
    assert stream == KNOWN.get(f"{codec.name} {share}")


@pytest.mark.parametrize("codec", MASK_CODECS, ids=lambda c: c.name)
def test_truncated_and_longer_masks_are_refused(codec: MaskCodec) -> None:
    scores, probs = synthetic(3000)
    context = make_context(scores)
    payload = codec.encode(codec.sample(probs, context, np.random.default_rng(0)), context)
    for length in range(len(payload)):
        with pytest.raises(PayloadError):
            codec.decode(payload[:length], context)
    for tail in (b"\0", b"\0\0\0\0", payload):
        with pytest.raises(PayloadError):
            codec.decode(payload + tail, context)


@pytest.mark.parametrize("name", ["entropy", "flips"])
def test_corrupt_masks_are_refused(name: str) -> None:
    codec = mask_codec(name)
    scores, probs = synthetic(3000)
    context = make_context(scores)
    payload = codec.encode(codec.sample(probs, context, np.random.default_rng(0)), context)
    rng = np.random.default_rng(1)
    for _ in range(400):
        corrupt = bytearray(payload)
        corrupt[rng.integers(len(corrupt))] ^= 1 << int(rng.integers(8))
        with pytest.raises(PayloadError):
            codec.decode(bytes(corrupt), context)
        with pytest.raises(PayloadError):
            codec.decode(rng.bytes(len(payload)), context)


@pytest.mark.parametrize("name", ["entropy", "flips"])
def test_decoding_takes_bounded_memory(name: str) -> None:
    codec, n = mask_codec(name), 200_000
    context = make_context(synthetic(n)[0])
    rng = np.random.default_rng(0)
    for length in (8, 3000, codec.max_bytes(n), 100 * n):
        payload = rng.bytes(length)
        tracemalloc.start()
        with pytest.raises(PayloadError):
            codec.decode(payload, context)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 60 * n + (4 << 20)


@pytest.mark.parametrize("name", ["entropy", "flips"])
def test_a_mask_for_another_state_is_refused(name: str) -> None:
    codec = mask_codec(name)
    scores, probs = synthetic(3000)
    context = make_context(scores)
    payload = codec.encode(codec.sample(probs, context, np.random.default_rng(0)), context)
    with pytest.raises(PayloadError):
        codec.decode(payload, make_context(-scores))
    with pytest.raises(PayloadError):
        codec.decode(payload, make_context(scores[:-1]))


@pytest.mark.parametrize("codec", MASK_CODECS, ids=lambda c: c.name)
def test_masks_of_another_size_are_not_encoded(codec: MaskCodec) -> None:
    context = make_context(np.zeros(9, dtype=np.int16))
    for size in (0, 8, 10, 16, 17):
        with pytest.raises(PayloadError, match=f"{size} parameters where there are 9"):
            codec.encode(pack(np.zeros(size, np.uint8)), context)


def test_raw_is_one_bit_a_parameter_and_refuses_padding() -> None:
    context = make_context(np.zeros(9, dtype=np.int16))
    codec = mask_codec("raw")
    mask = pack(np.array([1, 0, 0, 0, 0, 0, 0, 1, 1], dtype=np.uint8))
    assert codec.encode(mask, context) == b"\x81\x01"
    for last in range(2, 256):
        with pytest.raises(PayloadError, match="beyond the 9 parameters"):
            codec.decode(bytes([0x81, last]), context)


def test_entropy_comes_close_to_the_cross_entropy() -> None:
    scores, probs = synthetic(200_000)
    context = make_context(scores)
    codec = mask_codec("entropy")
    mask = codec.sample(probs, context, np.random.default_rng(0))
    p, q = sigma(scores) / 65536, probs / 65536
    cross = float(-(q * np.log2(p) + (1 - q) * np.log2(1 - p)).mean())
    assert 8 * len(codec.encode(mask, context)) / probs.size <= 1.01 * cross


@pytest.mark.parametrize("codec", MASK_CODECS, ids=lambda c: c.name)
def test_sampled_masks_have_the_probabilities_asked_for(codec: MaskCodec) -> None:
    probs = np.repeat(np.array([0, 1, 655, 20000, 65535], dtype=np.uint16), 20_000)
    context = make_context(np.zeros(probs.size, dtype=np.int16))
    mask = codec.sample(probs, context, np.random.default_rng(2))
    bits = unpack(mask).reshape(5, -1)
    expected = probs.reshape(5, -1)[:, 0] / 65536
    assert (np.abs(bits.mean(axis=1) - expected) <= 5 * np.sqrt(expected / 20_000)).all()


@settings(max_examples=60, deadline=None)
@given(n=SIZES, kind=st.sampled_from(sorted(SCORES)), seed=st.integers(0, 2**32))
def test_scores_survive_the_round_trip(n: int, kind: str, seed: int) -> None:
    scores = make_scores(kind, n, np.random.default_rng(seed))
    for codec in SCORE_CODECS:
        payload = codec.encode(scores)
        assert len(payload) == codec.max_bytes(n)
        decoded = codec.decode(payload, n)
        assert decoded.dtype == np.int16
        # bfloat16 keeps eight significant bits.
        slack = 0 if codec.name == "int16" else np.abs(scores.astype(np.int32)) / 256 + 1
        assert (np.abs(decoded.astype(np.int32) - scores) <= slack).all()
        assert codec.encode(decoded) == payload


def test_every_bfloat16_is_canonical_or_refused() -> None:
    codec = score_codec("bfloat16")
    every = np.arange(-32768, 32768).astype(np.int16)
    payload = codec.encode(every)
    assert hashlib.sha256(payload).hexdigest() == KNOWN["bfloat16"]
    valid = set(np.frombuffer(payload, dtype="<u2").tolist())
    for bits in range(65536):
        one = bits.to_bytes(2, "little")
        if bits in valid:
            codec.decode(one, 1)
        elif bits % 7 == 0 or bits in (0x8000, 0x7FC0, 0x7F80, 0xFF80):
            with pytest.raises(PayloadError):
                codec.decode(one, 1)


def test_weights_survive_the_round_trip_and_must_be_finite() -> None:
    codec = weight_codec("float32")
    weights = np.array([0.0, -0.0, 1e-45, 3.4e38, -1.5], dtype=np.float32)
    payload = codec.encode(weights)
    assert codec.decode(payload, 5).tobytes() == weights.tobytes()
    with pytest.raises(PayloadError, match="not finite"):
        codec.decode(codec.encode(np.array([np.nan], dtype=np.float32)), 1)


@pytest.mark.parametrize("codec", [*SCORE_CODECS, *WEIGHT_CODECS], ids=lambda c: c.name)
def test_plain_payloads_of_another_length_are_refused(codec: ScoreCodec | WeightCodec) -> None:
    for length in (0, 1, codec.max_bytes(3) - 1, codec.max_bytes(3) + 1):
        with pytest.raises(PayloadError, match="3 values take"):
            codec.decode(bytes(length), 3)


def test_registry_has_every_codec_of_the_contract() -> None:
    assert [mask_codec(c.name) for c in MASK_CODECS] == list(MASK_CODECS)
    assert [score_codec(c.name) for c in SCORE_CODECS] == list(SCORE_CODECS)
    assert [weight_codec(c.name) for c in WEIGHT_CODECS] == list(WEIGHT_CODECS)
    wires = {c.wire for c in MASK_CODECS} | {c.wire for c in SCORE_CODECS}
    wires |= {c.wire for c in WEIGHT_CODECS}
    assert wires == set(pb.Codec.values()) - {pb.CODEC_UNSPECIFIED}
    for look_up, name in ((mask_codec, "int16"), (score_codec, "raw"), (weight_codec, "")):
        with pytest.raises(KeyError):
            look_up(name)


def test_the_benchmark_reads_captured_states(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, _ = synthetic(4000)
    np.savez(tmp_path / "s.npz", scores=scores, client_scores=np.stack([scores, -scores]))
    assert comm.main(["--states", str(tmp_path / "s.npz"), "--repeat", "1", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    bits = {row["codec"]: row["bits"] for row in report["rows"]}
    assert (report["dimension"], report["clients"], report["divergence"]) == (4000, 2, 0.0)
    assert bits["raw"] == 1.0
    assert bits["flips"] < 0.1 < bits["entropy"] < 1.01
    np.savez(tmp_path / "bad.npz", scores=scores)
    assert comm.main(["--states", str(tmp_path / "bad.npz")]) == 1
    assert "bad.npz" in capsys.readouterr().err
