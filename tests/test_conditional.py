"""Generators that are told which class to draw: layers, training, models, configs."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.simulate import client_moments, simulate
from client.local_images import LocalImages, local_moments
from client.methods import make_trainer
from client.trainer import Trainer
from common.config import RunConfig, parse_config
from common.data import open_source
from common.downlink import initial_state
from common.encoders import load_encoder
from common.errors import ConfigError, ModelFileError
from common.model.architecture import Architecture
from common.model.export import build_model, load_model
from common.model.frozen import frozen_weights
from common.model.generator import generate

CPU = torch.device("cpu")
SHAPES = "[model]\nwidth = 2\nimage_size = 16\nlatent = 8\n"
TINY = parse_config(
    f"rounds = 2\n[data]\nmin_class_size = 2\n{SHAPES}[train]\nlocal_steps = 2\nbatch_size = 16"
)
PINNED = {
    "prism": "3bea8d0ed8fcdea76c61bd8d3590aea83579abf95335845c3a7ee232f76f00a9 2a697e596702b450",
    "fedavg": "b4ee4080b6c5d5e8d4dd8071adf438b3c5755fcdd3a3c54641cc88ee3c34da94 eec16f22e32b954c",
}
"""Digest of the state after two rounds, and the start of that of the model's file, as they were
before there were classes, of torch 2.13 where it uses AVX-512."""
SUMS = torch.backends.cpu.get_cpu_capability(), torch.__version__.split(".")[:2]


def trainer(config: RunConfig = TINY, images: int = 60) -> Trainer:
    encoder = load_encoder("small")
    local = LocalImages.of(config, open_source("digits"), np.arange(images))
    return make_trainer(config, encoder, local_moments(encoder, local, CPU), CPU)


def test_a_label_adds_what_a_transposed_convolution_of_its_one_hot_map_gives() -> None:
    architecture = Architecture.of(TINY)
    weights = torch.from_numpy(frozen_weights(architecture, 1))
    layers = {layer.name: layer for layer in architecture.layers}
    project, label = layers["project"], layers["label"]
    z, labels = torch.randn(5, 8), torch.tensor([3, 0, 9, 3, 1])
    joined = torch.cat([z, F.one_hot(labels, 10).float()], dim=1)[:, :, None, None]
    kernel = torch.cat(
        [
            weights[layer.offset : layer.offset + layer.count].view(layer.shape)
            for layer in (project, label)
        ]
    )
    written = F.conv_transpose2d(joined, kernel)
    # The bypass and normalisation follow; a generator whose first map is given shows it alone.
    first: list[torch.Tensor] = []

    def record(x: torch.Tensor, index: int) -> torch.Tensor:
        if index == 0:
            first.append(x)
        return x

    generate(architecture, z, weights, record, labels=labels)
    torch.testing.assert_close(first[0], written)


def test_a_step_draws_the_classes_of_the_client_in_equal_blocks() -> None:
    noise = torch.Generator().manual_seed(0)
    own = trainer()
    groups = own._draw_groups(noise)
    assert groups == sorted(set(groups))
    assert len(groups) == 16 // 4 < len(own._real.classes)
    wide = TINY.model_copy(update={"train": TINY.train.model_copy(update={"class_batch": 8})})
    few = trainer(wide)
    drawn = [few._draw_groups(noise) for _ in range(40)]
    assert {len(groups) for groups in drawn} == {2}
    assert {group for groups in drawn for group in groups} == set(range(len(few._real.classes)))


def test_training_goes_on_as_if_never_interrupted_and_only_with_the_same_classes() -> None:
    state = initial_state(TINY)
    first = trainer()
    first.train(state, "a")
    kept = copy.deepcopy(first.state_dict())
    second = first.train(replace(state, round=1), "a")
    again = trainer()
    again.load_state_dict(kept)
    assert np.array_equal(again.train(replace(state, round=1), "a").values, second.values)
    with pytest.raises(ValueError, match="other classes"):
        trainer(images=12).load_state_dict(kept)
    assert np.isfinite(second.loss)


def test_moments_of_classes_and_a_run_without_do_not_meet() -> None:
    ignoring = parse_config(f'[data]\nlabels = "ignore"\n{SHAPES}')
    encoder = load_encoder("small")
    local = LocalImages.of(TINY, open_source("digits"), np.arange(60))
    with pytest.raises(ValueError, match="uses labels"):
        make_trainer(ignoring, encoder, local_moments(encoder, local, CPU), CPU)


def test_a_model_keeps_its_classes_and_draws_each(tmp_path: Path) -> None:
    model = build_model(TINY, initial_state(TINY), unseen={4})
    model.save(tmp_path / "m")
    back = load_model(tmp_path / "m")
    assert back.class_names == tuple("0123456789")
    assert back.unseen == (4,)
    labels = back.balanced_labels(18)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9] * 2
    assert torch.equal(back.sample(18, seed=3), back.sample(18, seed=3, labels=labels))
    sevens = back.sample(18, seed=3, labels=np.full(18, 7))
    assert torch.equal(sevens[7], back.sample(18, seed=3)[7]) == (labels[7] == 7)
    assert not torch.equal(sevens, back.sample(18, seed=3, labels=np.full(18, 1)))
    assert (back.label_of("7"), back.learned) == (7, (0, 1, 2, 3, 5, 6, 7, 8, 9))
    with pytest.raises(ConfigError, match="no class 'cat'; the model has 0, 1"):
        back.label_of("cat")
    for labels in (np.array([10]), np.array([-1]), np.array([1, 2])):
        with pytest.raises(ConfigError, match="give 1 labels from 0 to 9"):
            back.sample(1, labels=labels)


def test_a_model_without_classes_takes_no_labels(tmp_path: Path) -> None:
    ignoring = parse_config(f'[data]\nlabels = "ignore"\n{SHAPES}')
    build_model(ignoring, initial_state(ignoring)).save(tmp_path / "m")
    model = load_model(tmp_path / "m")
    assert (model.class_names, model.balanced_labels(3)) == ((), None)
    for attempt in (lambda: model.label_of("7"), lambda: model.sample(1, labels=np.zeros(1, int))):
        with pytest.raises(ConfigError, match="draws no classes"):
            attempt()


def test_a_model_file_whose_statistics_cannot_be_is_refused(tmp_path: Path) -> None:
    model = build_model(TINY, initial_state(TINY))
    for broken in (
        replace(model, means=model.means * np.float32("nan")),
        replace(model, variances=-model.variances),
        replace(model, class_names=("a", "a", *model.class_names[2:])),
        replace(model, unseen=(10,)),
    ):
        broken.save(tmp_path / "m")
        with pytest.raises(ModelFileError, match="holds no consistent model"):
            load_model(tmp_path / "m")


@pytest.mark.parametrize("method", ["prism", "fedavg"])
@pytest.mark.skipif(SUMS != ("AVX512", ["2", "13"]), reason=f"{SUMS} sums in another order")
def test_a_run_that_ignores_labels_is_what_it_was_before_there_were_classes(
    method: str, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alpha = "alpha = 0.3\n" if method == "prism" else ""
    config = parse_config(
        f'rounds = 2\nmethod = "{method}"\n{alpha}{SHAPES}[train]\nlocal_steps = 2\n'
        "batch_size = 16\nmoving_average_leak = 0\n"
        '[data]\nclients = 3\npartition = "shards"\nlabels = "ignore"\n'
        "[codec]\nerror_feedback_step = 0.3\nerror_feedback_step_final = 0.3\n"
        "[output]\naverage = 0.1"
    )
    encoder = load_encoder("small")
    moments = client_moments(config, open_source("digits"), encoder, CPU)
    *_, last = simulate(config, encoder, moments, CPU)
    build_model(config, last.source.state).save(tmp_path / "m")
    torch.set_num_threads(threads)
    of_file = hashlib.sha256((tmp_path / "m").read_bytes()).hexdigest()
    assert f"{last.state.digest().hex()} {of_file[:16]}" == PINNED[method]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "folder"\nlabels = "use"', "needs data.classes"),
        ('classes = ["a"]', "digits brings its own, 0, 1, 2"),
        ('name = "folder"\nclasses = ["a", "a"]', "a name stands there twice"),
        ('name = "folder"\nclasses = ["a", ""]', "at least 1 character"),
        ('attributes = ["Male"]', 'needs data.name = "celeba"'),
        ("min_class_size = 1", "greater than or equal to 2"),
    ],
)
def test_configs_of_classes_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(f"[data]\n{text}")


def test_where_labels_are_used() -> None:
    assert parse_config("").classes == tuple("0123456789")
    assert parse_config('[data]\nname = "folder"').classes == ()
    assert parse_config('[data]\nname = "folder"\nclasses = ["cat", "dog"]').classes == (
        "cat",
        "dog",
    )
    assert parse_config('[data]\nlabels = "ignore"').classes == ()
    faces = parse_config('[data]\nname = "celeba"\nattributes = ["Male", "Smiling"]')
    assert faces.classes[3] == "Male, Smiling"
    assert parse_config(faces.to_toml()) == faces
