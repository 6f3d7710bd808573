"""Images without labels: codes, cells, their tables, and models that draw by them."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulate import client_moments, simulate
from client.cells import find_cells
from client.local_images import LocalImages, local_moments
from client.loss import real_moments
from client.methods import make_trainer
from client.store import ClientStore, MadeUpdate
from client.trainer import Trainer
from common.cells import CODE_SIZE, LARGEST_COUNT, LARGEST_ENTRY, NO_CELLS, CellTable
from common.config import parse_config
from common.data import open_source
from common.downlink import initial_state
from common.encoders import codes, load_encoder
from common.errors import ConfigError, DataError, ModelFileError, PayloadError
from common.model.architecture import Architecture
from common.model.export import build_model, load_model
from common.model.frozen import frozen_weights
from common.model.generator import generate
from common.report import Report
from common.state import GlobalState
from common.wire import report_from_pb, report_to_pb
from prism.drawing import Wanted, draw
from server.average import StateAverage

CPU = torch.device("cpu")
TEXT = (
    'rounds = 2\n[data]\nlabels = "cells"\ncells = 5\nmin_class_size = 4\nclients = 2\n'
    "[model]\nwidth = 2\nimage_size = 16\nlatent = 8\n[train]\nlocal_steps = 2\nbatch_size = 16"
)
RUN = parse_config(TEXT)
CELLS = CellTable.of(np.arange(3 * CODE_SIZE).reshape(3, CODE_SIZE) / 8, [6, 3, 1])
KNOWN_CODE = [0.0590, 2.0550, -0.4340, 0.5691, 1.1510, -1.0556, -0.9992, -0.2442]
"""The first entries of the code of a grey ramp, from top to bottom."""


def images(count: int = 60) -> LocalImages:
    return LocalImages.of(RUN, open_source("digits"), np.arange(count), "ann")


def trainer(count: int = 60) -> Trainer:
    encoder = load_encoder("small")
    return make_trainer(RUN, encoder, local_moments(encoder, images(count), CPU), CPU)


def test_codes_are_known() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    found = codes.codes_of(codes.sketches_of([ramp]))
    assert (found.shape, found.dtype) == ((1, CODE_SIZE), np.float32)
    np.testing.assert_allclose(found[0, : len(KNOWN_CODE)], KNOWN_CODE, atol=1e-3)
    colour = codes.codes_of(codes.sketches_of([ramp.expand(1, 3, 16, 16)]))
    np.testing.assert_allclose(colour, found, atol=1e-3)


def test_a_map_that_is_not_the_bundled_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(codes.BUNDLED_MAP.read_bytes())
    content[-1] ^= 1
    monkeypatch.setattr(codes, "BUNDLED_MAP", tmp_path / "map")
    codes.bundled_map.cache_clear()
    with pytest.raises(ModelFileError, match="cannot read"):
        codes.bundled_map()
    codes.BUNDLED_MAP.write_bytes(content)
    with pytest.raises(ModelFileError, match="is not this version's"):
        codes.bundled_map()
    codes.bundled_map.cache_clear()


def test_cells_group_the_images_and_tell_their_mean_codes() -> None:
    source = open_source("digits")
    everything = LocalImages(RUN, source, np.arange(100))
    found, table = find_cells(everything.batches(), cells=6, least=12, seed=3)
    sizes = np.bincount(found[found >= 0])
    assert sizes.tolist() == table.counts.tolist()
    assert sizes.min() >= 12
    assert (found < 0).sum() == 100 - sizes.sum()
    of_images = codes.codes_of(codes.sketches_of(everything.batches()))
    means = np.array([of_images[found == cell].mean(0) for cell in range(len(table))])
    np.testing.assert_allclose(table.codes, means, rtol=1e-3, atol=1e-3)
    apart = ((of_images[found >= 0] - means[found[found >= 0]]) ** 2).sum()
    assert apart < 0.8 * ((of_images[found >= 0] - of_images[found >= 0].mean(0)) ** 2).sum()


def test_equal_images_are_one_cell_and_few_are_none() -> None:
    black = torch.zeros(30, 1, 16, 16, dtype=torch.uint8)
    found, table = find_cells([black], cells=4, least=4, seed=1)
    assert (set(found), table.counts.tolist()) == ({0}, [30])
    with pytest.raises(DataError, match="3 images make no cell of 4"):
        images(3)
    assert len(images(9).cells) <= 2


def test_moments_are_those_of_each_cell() -> None:
    encoder, own = load_encoder("small"), images()
    real = local_moments(encoder, own, CPU)
    assert (real.classes, own.classes, real.cells) == ((), (), own.cells)
    assert len(real.mean) == len(own.cells) == len(own.groups) > 1
    assert own.labels is not None
    assert np.bincount(own.labels).tolist() == own.cells.counts.tolist()
    second = dataclasses.replace(own, indices=own.indices[own.labels == 1], labels=None)
    assert torch.equal(real.mean[1], real_moments(encoder, second.batches(), CPU).mean[0])


def test_threads_do_not_change_cells() -> None:
    threads = torch.get_num_threads()
    tables = []
    for count in (1, 2):
        torch.set_num_threads(count)
        tables.append(images(400).cells)
    torch.set_num_threads(threads)
    assert tables[0] == tables[1]


def test_a_code_adds_what_a_transposed_convolution_of_it_gives() -> None:
    architecture = Architecture.of(RUN)
    weights = torch.from_numpy(frozen_weights(architecture, 1))
    layers = {layer.name: layer for layer in architecture.layers}
    assert (architecture.layers[1].name, layers["code"].fan_in) == ("code", CODE_SIZE)
    project, code = (
        weights[layer.offset : layer.offset + layer.count].view(layer.shape)
        for layer in (layers["project"], layers["code"])
    )
    z, given_codes = torch.randn(5, 8), torch.randn(5, CODE_SIZE)
    first: list[torch.Tensor] = []

    def record(x: torch.Tensor, index: int) -> torch.Tensor:
        if index == 0:
            first.append(x)
        return x

    generate(architecture, z, weights, record, codes=given_codes)
    written = F.conv_transpose2d(z[..., None, None], project)
    written = written + F.conv_transpose2d(given_codes[..., None, None], code)
    torch.testing.assert_close(first[0], written)


def test_a_restarted_client_has_its_cells_again(tmp_path: Path) -> None:
    state = initial_state(RUN)
    first = trainer()
    first.train(state, "ann")
    kept = copy.deepcopy(first.state_dict())
    update = MadeUpdate(0, 0, 1, (b"x",), Report(0.5, None, (), first.cells), 1.0)
    store = ClientStore(tmp_path, "ann")
    store.save(bytes(32), kept, update)
    loaded = store.load(bytes(32))
    store.close()
    assert loaded is not None
    saved, again = loaded
    assert again == update
    second = trainer()
    second.load_state_dict(saved)
    assert second.cells == first.cells
    after = GlobalState(1, state.values)
    assert np.array_equal(first.train(after, "ann").values, second.train(after, "ann").values)
    with pytest.raises(ValueError, match="other cells"):
        trainer(40).load_state_dict(saved)


ROW = CELLS.content[:36]


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        ROW[:-1],
        ROW + b"\0",
        b"\x00\x7e" + ROW[2:],  # NaN
        b"\x00\x7c" + ROW[2:],  # infinity
        b"\xff\x7b" + ROW[2:],  # 65504
        ROW[:-4] + bytes(4),
        ROW[:-4] + b"\xff" * 4,
    ],
)
def test_tables_that_cannot_be_are_refused(content: bytes) -> None:
    message = report_to_pb(Report(cells=CELLS))
    assert report_from_pb(message).cells == CELLS
    message.cells = content
    with pytest.raises(PayloadError):
        report_from_pb(message)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_table_that_cannot_be(content: bytes) -> None:
    try:
        table = CellTable.read(content)
    except PayloadError:
        return
    assert (np.abs(table.codes) <= LARGEST_ENTRY).all()
    assert ((table.counts >= 1) & (table.counts <= LARGEST_COUNT)).all()
    assert CellTable.of(table.codes, table.counts) == table


def test_cells_are_drawn_in_the_shares_of_their_images() -> None:
    rng = np.random.default_rng(0)
    table = CellTable.of(np.arange(40)[:, None] * np.ones(CODE_SIZE), rng.integers(1, 999, 40))
    drawn = table.drawn(5000)
    assert (drawn.shape, drawn.dtype) == ((5000, CODE_SIZE), np.float32)
    found = np.bincount(drawn[:, 0].astype(int), minlength=40)
    assert np.abs(found - 5000 * table.counts / table.counts.sum()).max() <= 4
    # Whoever asks for fewer, or goes on from there, gets the same.
    assert np.array_equal(table.drawn(70), drawn[:70])
    assert np.array_equal(table.drawn(30, start=40), drawn[40:70])
    assert not NO_CELLS.drawn(3).any()


def test_the_latest_table_of_each_client_counts_whoever_was_first() -> None:
    state = initial_state(RUN)
    one, two, three = (CellTable.of([[n] * CODE_SIZE], [n]) for n in (1, 2, 3))
    average, other = (StateAverage(RUN, state) for _ in range(2))
    average.add(GlobalState(1, state.values), cells={"bob": one, "ann": two})
    average.add(GlobalState(2, state.values), cells={"bob": three})
    other.add(GlobalState(1, state.values), cells={"ann": two})
    other.restore(state, {key: array.copy() for key, array in other.snapshot().items()})
    other.add(GlobalState(2, state.values), cells={"bob": three})
    assert average.source.cells == other.source.cells == CellTable.union([two, three])


def test_a_model_keeps_its_cells_and_draws_them(tmp_path: Path) -> None:
    model = build_model(RUN, initial_state(RUN), cells=CELLS)
    model.save(tmp_path / "m")
    back = load_model(tmp_path / "m")
    assert (back.cells, back.architecture, back.class_names) == (CELLS, model.architecture, ())
    whole = back.sample(20, seed=3)
    assert torch.equal(whole, model.sample(20, seed=3))
    assert (whole[:8].int() - back.sample(8, seed=3).int()).abs().max() <= 1
    assert np.array_equal(CELLS.largest.drawn(2), CELLS.codes[[0, 0]])
    steps, alone = Wanted(steps=3), dataclasses.replace(back, cells=CELLS.largest)
    assert torch.equal(draw(back, steps).images, draw(alone, steps).images)
    other = CellTable.of(-CELLS.codes, CELLS.counts)
    assert not torch.equal(whole, dataclasses.replace(back, cells=other).sample(20, seed=3))
    with pytest.raises(ConfigError, match="draws no classes"):
        back.sample(1, labels=np.zeros(1, int))
    build_model(RUN, initial_state(RUN)).save(tmp_path / "untrained")
    assert load_model(tmp_path / "untrained").sample(2).shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda codes: codes * np.float32("nan")),
        ("codes", lambda codes: codes * np.float32(1000)),
        ("codes", lambda codes: codes[:, 1:]),
        ("codes", lambda codes: codes.astype(np.float64)),
        ("counts", lambda counts: counts * 0),
        ("counts", lambda counts: counts + 2**32),
        ("counts", lambda counts: counts[:-1]),
        ("counts", lambda counts: counts[0]),
    ],
)
def test_a_model_file_whose_cells_cannot_be_is_refused(
    name: str, change: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(RUN, initial_state(RUN), cells=CELLS)
    tensors = model._tensors()
    tensors[name] = np.ascontiguousarray(change(tensors[name]))  # type: ignore[operator]
    monkeypatch.setattr(type(model), "_tensors", lambda _: tensors)
    model.save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="holds no consistent model"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("method", ["prism", "fedavg"])
def test_a_federation_of_unlabelled_images(method: str) -> None:
    config = parse_config(f'method = "{method}"\n{TEXT}')
    encoder = load_encoder("small")
    moments = client_moments(config, open_source("digits"), encoder, CPU)
    assert moments[0].cells != moments[1].cells
    *_, last = simulate(config, encoder, moments, CPU)
    assert last.source.cells == CellTable.union([real.cells for real in moments])
    model = build_model(config, last.source.state, last.source.unseen, last.source.cells)
    assert len(model.sample(3)) == 3


def test_configs_of_cells() -> None:
    assert (RUN.classes, RUN.uses_cells) == ((), True)
    assert parse_config(RUN.to_toml()) == RUN
    folder = '[data]\nname = "folder"\nlabels = "cells"\n'
    assert parse_config(folder).uses_cells
    assert not parse_config('[data]\nname = "folder"').uses_cells
    for mechanism in ("moments", "mask-noise"):
        with pytest.raises(ConfigError, match="nothing protects the table"):
            parse_config(f'{folder}[privacy]\nmechanism = "{mechanism}"')
    with pytest.raises(ConfigError, match="class_batch is more"):
        parse_config(f"{folder}[train]\nclass_batch = 65")


def test_moments_of_cells_and_a_run_without_do_not_meet() -> None:
    encoder = load_encoder("small")
    real = local_moments(encoder, images(), CPU)
    for wrong in (dataclasses.replace(real, cells=NO_CELLS), dataclasses.replace(real)):
        config = RUN if not wrong.cells else parse_config('[data]\nlabels = "ignore"')
        with pytest.raises(ValueError, match="uses cells"):
            make_trainer(config, encoder, wrong, CPU)
