"""MNIST's format, on small synthetic files with known pixels, gzipped and not."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from coalmine.data.download import verify
from coalmine.data.images import Splits
from coalmine.data.sources import mnist
from coalmine.errors import CoalmineError

Pack = Callable[[str, dict[str, bytes]], Path]

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.NAMES


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (n, 28, 28), dtype=np.uint8)


def image_file(pixels: np.ndarray) -> bytes:
    """Written value by value as the format's description says."""
    values = [int(pixels[i, row, column]) for i in range(len(pixels)) for row in range(28) for column in range(28)]
    return struct.pack(">IIII", 2051, len(pixels), 28, 28) + bytes(values)


def label_file(labels: list[int]) -> bytes:
    return struct.pack(">II", 2049, len(labels)) + bytes(labels)


def content() -> dict[str, bytes]:
    """Three training images with labels 7, 0, 9 and two test images with labels 1, 2."""
    return {
        TRAIN_IMAGES: image_file(images(3, 0)),
        TRAIN_LABELS: label_file([7, 0, 9]),
        TEST_IMAGES: image_file(images(2, 1)),
        TEST_LABELS: label_file([1, 2]),
    }


def packed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()}


def load(path: Path, **settings: object) -> Splits:
    chosen = mnist.Settings.model_validate({"path": str(path), "official": False} | settings)
    return mnist.load(chosen, [], np.random.default_rng(0))


@pytest.fixture
def tiny_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tiny files the official ones of both data sets."""
    sums = tuple(hashlib.md5(data, usedforsecurity=False).hexdigest() for data in content().values())
    for name, variant in mnist.VARIANTS.items():
        monkeypatch.setitem(mnist.VARIANTS, name, replace(variant, content_md5=sums))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("change", [packed, dict])
def test_images_are_framed_with_zeros_in_the_order_of_the_files(
    pack: Pack, kind: str, change: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    splits = load(pack(kind, change(content()) | {"readme.txt": b"notes"}))
    assert splits.test is not None
    for part, pixels, labels in ((splits.train, images(3, 0), [7, 0, 9]), (splits.test, images(2, 1), [1, 2])):
        assert part.images.shape[1:] == (32, 32, 1) == mnist.expected_shape(mnist.Settings())
        np.testing.assert_array_equal(part.images[:, 2:30, 2:30, 0], pixels)
        assert part.images.sum(dtype=int) == pixels.sum(dtype=int)  # zeros around
        assert part.labels.tolist() == labels
        part.check("digits", 10)
    assert splits.classes == tuple("0123456789") == mnist.CLASSES


def test_the_frame_can_be_left_out_or_be_wider(pack: Pack) -> None:
    path = pack("folder", content())
    np.testing.assert_array_equal(load(path, size=28).train.images[..., 0], images(3, 0))
    np.testing.assert_array_equal(load(path, size=40).train.images[:, 6:34, 6:34, 0], images(3, 0))
    for size in (28, 40):
        assert mnist.expected_shape(mnist.Settings(size=size)) == (size, size, 1)


@pytest.mark.parametrize("size", [26, 31, 66])
def test_a_frame_has_two_equal_sides(size: int) -> None:
    with pytest.raises(ValidationError, match="size"):
        mnist.Settings(size=size)


def test_the_fetched_files_are_read_where_no_path_is_set(pack: Pack, tiny_release: None) -> None:
    settings = mnist.Settings()
    folder = pack("folder", {f"mnist-{name}": data for name, data in packed(content()).items()})
    fetched = [folder / remote.name for remote in mnist.files(settings)]
    assert mnist.load(settings, fetched, np.random.default_rng(0)).train.labels.tolist() == [7, 0, 9]
    assert load(folder, official=True).train.labels.tolist() == [7, 0, 9]  # and that folder may be the path


def test_fashion_mnist_has_its_own_classes(pack: Pack, tiny_release: None) -> None:
    splits = load(pack("folder", packed(content())), variant="fashion", official=True)
    assert splits.classes[7] == "Sneaker"
    assert len(splits.classes) == len(mnist.CLASSES)


def test_a_file_beside_its_gzipped_self_is_no_double(pack: Pack) -> None:
    assert len(load(pack("folder", content() | packed(content()))).train) == 3


def test_names_with_a_dot_are_known(pack: Pack) -> None:
    files = {name.replace("-idx", ".idx"): data for name, data in content().items()}
    assert len(load(pack("folder", files)).train) == 3


def test_two_data_sets_in_one_folder_are_refused(pack: Pack) -> None:
    files = {f"{folder}/raw/{name}": data for folder in ("MNIST", "Fashion") for name, data in content().items()}
    with pytest.raises(
        CoalmineError, match=r"data\.folder: MNIST/raw/\S+ is there twice, the other one is Fashion/raw/.* remove one"
    ):
        load(pack("folder", files))


def test_a_missing_file_is_named(pack: Pack) -> None:
    files = content()
    del files[TEST_LABELS]
    with pytest.raises(
        CoalmineError, match=rf"data\.zip: {TEST_LABELS} is missing, expected {TRAIN_IMAGES}, .*; add it"
    ):
        load(pack("zip", files))


def test_a_path_to_one_of_the_files_is_told_the_folder(pack: Pack) -> None:
    folder = pack("folder", packed(content()))
    with pytest.raises(CoalmineError, match=rf"idx3-ubyte\.gz is one of four files, .*; set path: {folder}\."):
        load(folder / f"{TRAIN_IMAGES}.gz")


@pytest.mark.parametrize(
    ("magic", "found"),
    [
        (b"\0\0\x08\x01", "00000801"),  # labels under the name of images
        (b"\0\0\x0d\x03", "00000d03"),  # numbers of another type
        (b"\x08\x03\0\0", "08030000"),  # the other byte order
        (b"\0\x01\x08\x03", "00010803"),
    ],
)
def test_a_wrong_magic_number_is_refused(pack: Pack, magic: bytes, found: str) -> None:
    files = content()
    files[TRAIN_IMAGES] = magic + files[TRAIN_IMAGES][4:]
    with pytest.raises(
        CoalmineError,
        match=rf"data\.folder: {TRAIN_IMAGES}\.gz begins with {found}, expected 00000803, .*fetch it again",
    ):
        load(pack("folder", packed(files)))


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(CoalmineError, match="labels begins with nothing, expected 00000801"):
        mnist.parse(b"", 1, "labels")


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:9]])
@pytest.mark.parametrize("name", [TRAIN_IMAGES, TEST_LABELS])
def test_a_file_shorter_or_longer_than_its_header_says_is_refused(
    pack: Pack, tiny_release: None, name: str, change: Callable[[bytes], bytes]
) -> None:
    files = content()
    files[name] = change(files[name])
    with pytest.raises(CoalmineError, match=rf"data\.zip: {name} has \d+ bytes unpacked, expected \d+ for its shape"):
        load(pack("zip", files), official=True)  # said before the wrong hash


def test_a_header_of_absurd_size_is_refused() -> None:
    data = struct.pack(">IIII", 2051, *[2**32 - 1] * 3)
    with pytest.raises(CoalmineError, match=f"has 16 bytes unpacked, expected {16 + (2**32 - 1) ** 3}"):
        mnist.parse(data, 3, "images")


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data[:40] + b"\xff\xff" + data[42:]])
def test_a_gzipped_file_that_is_cut_off_or_damaged_is_refused(pack: Pack, change: Callable[[bytes], bytes]) -> None:
    files = packed(content())
    files[f"{TEST_IMAGES}.gz"] = change(files[f"{TEST_IMAGES}.gz"])
    with pytest.raises(
        CoalmineError, match=rf"data\.folder: {TEST_IMAGES}\.gz is damaged or cut off .*; fetch it again"
    ):
        load(pack("folder", files))


def test_a_compression_bomb_is_refused_before_it_fills_the_memory(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "MAX_BYTES", 100_000)
    files = packed(content()) | {f"{TRAIN_IMAGES}.gz": gzip.compress(bytes(50_000_000))}
    path = pack("folder", files)
    tracemalloc.start()
    with pytest.raises(CoalmineError, match=rf"{TRAIN_IMAGES}\.gz unpacks to more than 100000 bytes"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_official_files_have_room() -> None:
    assert mnist.MAX_BYTES > 16 + 60_000 * 28 * 28


@pytest.mark.parametrize("name", mnist.NAMES)
def test_files_of_other_content_are_refused_unless_they_may_differ(pack: Pack, tiny_release: None, name: str) -> None:
    files = content()
    assert len(load(pack("folder", files), official=True).train) == 3
    other = files[name][:-1] + bytes([files[name][-1] ^ 1])
    path = pack("zip", packed(files | {name: other}))
    found, expected = (hashlib.md5(data, usedforsecurity=False).hexdigest() for data in (other, files[name]))
    with pytest.raises(
        CoalmineError,
        match=rf"data\.zip: {name}\.gz: MD5 of the unpacked file is {found}, expected {expected}; .*official: false",
    ):
        load(path, official=True)
    assert len(load(path).train) == 3


def test_images_of_another_size_are_refused(pack: Pack) -> None:
    files = content() | {TRAIN_IMAGES: struct.pack(">IIII", 2051, 3, 14, 56) + bytes(3 * 14 * 56)}
    with pytest.raises(
        CoalmineError, match=rf"{TRAIN_IMAGES} has shape \(3, 14, 56\), expected at least one .* 28 x 28"
    ):
        load(pack("folder", files))


def test_a_file_without_images_is_refused(pack: Pack) -> None:
    files = content() | {TEST_IMAGES: image_file(images(0, 0)), TEST_LABELS: label_file([])}
    with pytest.raises(CoalmineError, match=rf"{TEST_IMAGES} has shape \(0, 28, 28\), expected at least one image"):
        load(pack("folder", files))


def test_as_many_labels_as_images_are_expected(pack: Pack) -> None:
    files = content() | {TRAIN_LABELS: label_file([1, 2])}
    with pytest.raises(
        CoalmineError, match=rf"{TRAIN_LABELS} has 2 labels, expected 3, one for each image of .*images"
    ):
        load(pack("folder", files))


def test_a_label_above_nine_is_refused_with_its_record(pack: Pack) -> None:
    files = content() | {TRAIN_LABELS: label_file([9, 10, 3])}
    with pytest.raises(CoalmineError, match=rf"{TRAIN_LABELS}: record 1 has label 10, expected 0 \.\. 9"):
        load(pack("folder", files))


def test_the_files_of_mnist_are_pinned_wherever_they_come_from() -> None:
    remotes = mnist.files(mnist.Settings())
    assert [(remote.name, remote.size, remote.md5) for remote in remotes] == [
        ("mnist-train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("mnist-train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
        ("mnist-t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
        ("mnist-t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
    ]
    assert remotes[0].url == "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
    for url in ("http://yann.lecun.com/exdb/mnist/", "http://yann.lecun.com/exdb/mnist"):
        mirrored = mnist.files(mnist.Settings(url=url))
        assert mirrored[3].url == "http://yann.lecun.com/exdb/mnist/t10k-labels-idx1-ubyte.gz"
        assert [remote.md5 for remote in mirrored] == [remote.md5 for remote in remotes]


def test_the_files_of_fashion_mnist_have_names_of_their_own() -> None:
    digits, clothes = (mnist.files(mnist.Settings(variant=variant)) for variant in ("digits", "fashion"))  # type: ignore[arg-type]
    assert not {remote.name for remote in digits} & {remote.name for remote in clothes}
    assert clothes[0].md5 == "8d4fb7e6c68d591d4c3dfef9ec88bf0d"
    assert clothes[0].url.endswith(".amazonaws.com/train-images-idx3-ubyte.gz")


def test_a_download_of_other_content_is_refused(tmp_path: Path) -> None:
    remote = mnist.files(mnist.Settings())[3]
    path = tmp_path / remote.name
    path.write_bytes(bytes(4_542))
    with pytest.raises(CoalmineError, match=rf"{remote.name}: MD5 is \w+, expected {remote.md5}"):
        verify(remote, path)


def test_nothing_is_fetched_where_a_path_is_set() -> None:
    assert mnist.files(mnist.Settings(path="mnist")) == []


def test_the_number_of_training_images_is_known_of_official_files_alone() -> None:
    assert mnist.expected_size(mnist.Settings()) == 60_000
    assert mnist.expected_size(mnist.Settings(official=False)) is None


def test_handwriting_is_not_public() -> None:
    assert "image_size: 28" in str(mnist.public_objection(mnist.Settings(size=28)))
    assert mnist.public_objection(mnist.Settings(variant="fashion")) is None
