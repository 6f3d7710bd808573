import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.catalogue import DATA_SETS
from common.compat import torchvision
from common.config import parse_config
from common.data import (
    ArraySource,
    ImageSource,
    class_labels,
    load_images,
    open_source,
    to_pixels,
    to_unit,
)
from common.data.datasets import OPENERS
from common.errors import DataError

CELEBA_ATTRIBUTES = ["Bald", "Male", "Young"]


def everything(source: ImageSource) -> np.ndarray:
    return np.arange(len(source))


def values(image: torch.Tensor) -> list[int]:
    found: list[int] = np.unique(image.numpy()).tolist()
    return found


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]


def colours(*colour: int, height: int = 20, width: int = 20) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def write_idx(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 0x803, n, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 0x801, n)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def write_celeba(root: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    files = torchvision.datasets.CelebA.file_list
    # The published checksums fit only the published files.
    monkeypatch.setattr(
        torchvision.datasets.CelebA, "file_list", [(i, None, name) for i, _, name in files]
    )
    base = root / "celeba"
    names = [f"{i:06d}.jpg" for i in range(1, 9)]
    for number, name in enumerate(names):
        pixels = colours(number * 20, 0, 0, height=size[0], width=size[1])
        pixels[:, :9] = pixels[:, -9:] = pixels[:29] = pixels[-29:] = 255
        # Lossless under JPEG's name, so that the rim can be told to the pixel.
        write(base / "img_align_celeba" / name, pixels, format="PNG")
    rows = {
        "list_eval_partition.txt": ([], "{name} {part}"),
        "identity_CelebA.txt": ([], "{name} 1"),
        "list_bbox_celeba.txt": (["8", "image_id x_1 y_1 width height"], "{name} 1 2 3 4"),
        "list_landmarks_align_celeba.txt": (["8", "lefteye_x lefteye_y"], "{name} 1 2"),
        "list_attr_celeba.txt": (["8", " ".join(CELEBA_ATTRIBUTES)], "{name} -1 {male} 1"),
    }
    for file, (head, row) in rows.items():
        body = [
            row.format(name=name, part=0 if i < 6 else 2, male=1 if i % 3 == 0 else -1)
            for i, name in enumerate(names)
        ]
        (base / file).write_text("\n".join([*head, *body]) + "\n")


def test_digits_are_split_for_good() -> None:
    train, test = open_source("digits"), open_source("digits", train=False)
    assert (len(train), len(test)) == (1498, 299)
    assert train.labels is not None
    assert np.bincount(train.labels).min() > 100
    images = load_images(train, np.array([5, 0]), 16, 1)
    assert images.shape == (2, 1, 16, 16)
    assert images.dtype == torch.uint8
    assert images.max() > 200
    assert torch.equal(images[1], load_images(train, np.array([0]), 16, 1)[0])


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fmnist", "FashionMNIST")])
def test_idx_layouts(name: str, folder: str, tmp_path: Path) -> None:
    write_idx(tmp_path / folder / "raw", 30)
    source = open_source(name, tmp_path)
    assert source.labels is not None
    assert source.labels.tolist() == [i % 10 for i in range(30)]
    assert len(source.class_names) == 10
    grey = load_images(source, everything(source), 32, 1)
    colour = load_images(source, everything(source), 32, 3)
    assert grey.shape == (30, 1, 32, 32)
    assert torch.equal(colour[:, 1:2], grey)
    assert not torch.equal(
        load_images(open_source(name, tmp_path, train=False), np.array([0]), 32, 1), grey[:1]
    )


def test_truncated_idx(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", 5)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot read mnist"):
        open_source("mnist", tmp_path)


def test_cifar10_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = torchvision.datasets.CIFAR10
    for key in ("train_list", "test_list"):
        monkeypatch.setattr(cls, key, [(name, None) for name, _ in getattr(cls, key)])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    planes = np.repeat(np.array([10, 20, 30], dtype=np.uint8), 1024)
    for name, _ in [*cls.train_list, *cls.test_list]:
        batch = {"data": np.stack([planes, planes]), "labels": [3, 9]}
        (base / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": [f"class {i}" for i in range(10)]}
    (base / "batches.meta").write_bytes(pickle.dumps(meta))
    source = open_source("cifar10", tmp_path)
    assert (len(source), len(open_source("cifar10", tmp_path, train=False))) == (10, 2)
    assert source.class_names[3] == "class 3"
    assert load_images(source, np.array([7]), 32, 3)[0, :, 5, 5].tolist() == [10, 20, 30]


def test_cifar10_as_zipped_jpegs(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(3):
            write(tmp_path / f"train/{label}/{number}.jpg", colours(200, 100, 0))
    with zipfile.ZipFile(tmp_path / "cifar10-train.zip", "w") as archive:
        for path in (tmp_path / "train").rglob("*.jpg"):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("train/notes.txt", "no image")
        archive.writestr("__MACOSX/train/._0.jpg", "no image either")
    source = open_source("cifar10", tmp_path)
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert load_images(source, np.array([4]), 16, 3).shape == (1, 3, 16, 16)


def test_celeba_is_cropped_and_labelled_by_gender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_celeba(tmp_path, monkeypatch, (218, 178))
    source = open_source("celeba", tmp_path)
    assert len(source) == 6
    assert len(open_source("celeba", tmp_path, train=False)) == 2
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 0, 1, 0, 0]
    assert source.class_names == ("not Male", "Male")
    both = parse_config('[data]\nname = "celeba"\nattributes = ["Male", "Bald"]')
    labels = class_labels(source, both)
    assert labels is not None
    assert [both.classes[label] for label in labels[:2]] == ["Male, not Bald", "not Male, not Bald"]
    with pytest.raises(DataError, match="celeba has no attribute Wings; it has Bald, Male, Young"):
        source.combinations(["Wings"])  # type: ignore[attr-defined]
    images = load_images(source, np.array([5]), 160, 3)
    assert values(images[0, 0]) == [100], "the white rim is cut off"


def test_celeba_images_too_small_to_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_celeba(tmp_path, monkeypatch, (100, 90))
    source = open_source("celeba", tmp_path)
    with pytest.raises(DataError, match=r"000001\.jpg: 90 x 100 pixels; a centre crop takes 160"):
        load_images(source, np.array([0]), 32, 3)


def test_folder_of_any_images(tmp_path: Path) -> None:
    grey = np.full((30, 50), 77, dtype=np.uint8)
    write(tmp_path / "a.png", grey)
    write(tmp_path / "b.jpg", colours(200, 100, 50, height=90, width=40))
    write(tmp_path / "c.tif", np.full((8, 8), 300 * 256 // 2, dtype=np.uint16))
    rgba = np.zeros((10, 10, 4), dtype=np.uint8)
    write(tmp_path / "d.png", rgba)
    write(tmp_path / "deep/er/e.bmp", colours(0, 0, 255))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 5
    assert source.labels is None
    images = load_images(source, everything(source), 16, 3)
    assert images.shape == (5, 3, 16, 16)
    assert values(images[0]) == [77]
    assert (images[1, :, 8, 8].int() - torch.tensor([200, 100, 50])).abs().max() < 4
    assert values(images[2]) == [150]
    assert values(images[3]) == [255], "transparent is white"
    assert images[4, :, 0, 0].tolist() == [0, 0, 255]
    assert load_images(source, np.array([4]), 16, 1)[0, 0, 0, 0] == 29, "0.114 * 255"


def test_folder_turns_images_upright(tmp_path: Path) -> None:
    pixels = colours(0, 0, 0, height=16, width=16)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    write(tmp_path / "a.png", pixels, exif=exif)
    image = load_images(open_source(f"folder:{tmp_path}"), np.array([0]), 16, 1)
    assert image[0, 0, :, 0].tolist() == [0] * 8 + [255] * 8


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for name in ("x/b/1.png", "x/a/1.png", "x/a/sub/2.png"):
        write(tmp_path / name, colours(1, 2, 3))
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("a", "b")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1]


def test_resize_is_antialiased_and_centred() -> None:
    stripes = np.zeros((1, 128, 192), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    stripes[:, :, :32] = stripes[:, :, 160:] = 7
    small = load_images(ArraySource("stripes", stripes), np.array([0]), 16, 1)
    assert (small.float() - 127.5).abs().max() < 12


def test_unit_range_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    unit = to_unit(pixels)
    assert unit.dtype == torch.float32
    assert float(unit.min()) == -1
    assert float(unit.max()) == 1
    assert torch.equal(to_pixels(unit), pixels)
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_sixty_thousand_small_images_take_seconds() -> None:
    source = ArraySource("many", np.zeros((60_000, 28, 28), dtype=np.uint8))
    started = time.perf_counter()
    assert load_images(source, everything(source), 32, 1).shape == (60_000, 1, 32, 32)
    assert time.perf_counter() - started < 10


def test_every_known_data_set_can_be_opened() -> None:
    assert set(OPENERS) == {name for name, known in DATA_SETS.items() if known.files}
    assert set(DATA_SETS) - set(OPENERS) == {"digits", "folder"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cats", "unknown data 'cats'; known are digits, mnist"),
        ("mnist:x", "unknown data 'mnist:x'"),
        ("folder:", "write folder:PATH"),
        ("folder:{tmp}/missing", "missing does not exist"),
        ("folder:{tmp}/empty", "empty has no images"),
        ("folder:{tmp}/text.txt", "neither a folder nor a .zip"),
        ("folder:{tmp}/broken.zip", "cannot read .*broken.zip"),
        ("mnist", "mnist needs MNIST/raw/.* in .*data-dir"),
        ("fmnist", "fmnist needs FashionMNIST/raw/.* in .*data-dir"),
        ("cifar10", "cifar10 needs cifar-10-batches-py/ or .* in .*data-dir"),
        ("celeba", "celeba needs celeba/img_align_celeba/ .* in .*data-dir"),
    ],
)
def test_missing_data_is_one_clear_line(spec: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no folder")
    (tmp_path / "broken.zip").write_text("no archive")
    with pytest.raises(DataError, match=message) as caught:
        open_source(spec.format(tmp=tmp_path), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(DataError, match=f"cannot read {locked}: Permission denied"):
        open_source(f"folder:{tmp_path}")


def test_data_dir_is_asked_for() -> None:
    with pytest.raises(DataError, match="mnist needs --data-dir DIR with MNIST/raw"):
        open_source("mnist")


@pytest.mark.parametrize("kind", ["text", "truncated", "32-bit"])
def test_unreadable_image_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("bad.tif" if kind == "32-bit" else "bad.png")
    if kind == "text":
        path.write_text("no image")
    elif kind == "32-bit":
        write(path, np.ones((8, 8), dtype=np.float32))
    else:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        write(path, noise)
        path.write_bytes(path.read_bytes()[:900])
    source = open_source(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"bad\.(png|tif)"):
        load_images(source, np.array([0]), 16, 1)


def test_index_out_of_range() -> None:
    with pytest.raises(DataError, match="out of range"):
        load_images(open_source("digits"), np.array([1498]), 16, 1)


def test_array_source_checks_its_labels() -> None:
    with pytest.raises(DataError, match="2 images but 1 labels"):
        ArraySource("odd", np.zeros((2, 4, 4), dtype=np.uint8), np.array([1]))
