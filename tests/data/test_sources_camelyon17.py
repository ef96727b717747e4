"""Camelyon17 as WILDS releases it, on a few synthetic patches of all centres."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from coalmine.data.class_folders import decode
from coalmine.data.download import verify
from coalmine.data.images import Splits
from coalmine.data.sources import camelyon17
from coalmine.errors import CoalmineError

Pack = Callable[[str, dict[str, bytes]], Path]

# One patch a row: patient, node, x, y, tumor, slide, center, split. The row is the value of the patch's pixels.
ROWS = [
    (4, 4, 3328, 21792, 1, 0, 0, 0),
    (4, 4, 3200, 22272, 0, 0, 0, 1),  # held out
    (61, 0, 512, 512, 0, 30, 3, 0),
    (51, 2, 640, 960, 1, 25, 2, 0),
    (24, 1, 1000, 2000, 1, 10, 1, 0),
    (99, 3, 96, -32, 1, 49, 4, 0),
    (51, 2, 704, 960, 0, 25, 2, 1),  # of the test centre, which WILDS takes whole
]
NAMES = [f"patches/patient_{p:03d}_node_{n}/patch_patient_{p:03d}_node_{n}_x_{x}_y_{y}.png" for p, n, x, y, *_ in ROWS]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def patch(value: int) -> bytes:
    """With an alpha channel, as the release has them."""
    return png(np.full((96, 96, 4), [value, value + 100, 255 - value, 255], np.uint8))


def metadata(rows: list[tuple[int, ...]] | None = None) -> bytes:
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for index, (patient, *others) in enumerate(ROWS if rows is None else rows):
        lines.append(f"{index},{patient:03d},{','.join(map(str, others))}")
    return "\n".join(lines).encode() + b"\n"


def release(folder: str = "") -> dict[str, bytes]:
    """All files; the metadata come last, and the patches are not in their order."""
    patches = {f"{folder}{name}": patch(value) for value, name in reversed(list(enumerate(NAMES)))}
    return {f"{folder}RELEASE_v1.0.txt": b"1.0"} | patches | {f"{folder}metadata.csv": metadata()}


def load(path: Path, **settings: object) -> Splits:
    chosen = camelyon17.Settings.model_validate({"path": str(path), "official": False} | settings)
    return camelyon17.load(chosen, [], np.random.default_rng(0))


def values(splits: Splits) -> tuple[list[int], list[int]]:
    """Rows of the private and of the test patches."""
    assert splits.test is not None
    splits.train.check("private", 2)
    splits.test.check("test", 2)
    return splits.train.images[:, 0, 0, 0].tolist(), splits.test.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("folder", ["", "./", "data/camelyon17_v1.0/"])
def test_the_official_split_is_read_in_the_order_of_the_metadata(
    pack: Pack, tmp_path: Path, kind: str, folder: str
) -> None:
    path = pack(kind, release(folder))
    before = sorted(tmp_path.rglob("*"))
    splits = load(path)
    assert values(splits) == ([0, 2, 5], [3, 6])
    assert splits.test is not None
    assert splits.train.labels.tolist() == [1, 0, 1]
    assert splits.test.labels.tolist() == [1, 0]
    assert splits.classes == ("normal", "tumor") == camelyon17.CLASSES
    assert splits.train.images.shape[1:] == (32, 32, 3) == camelyon17.expected_shape(camelyon17.Settings())
    assert splits.train.images[1, 5, 7].tolist() == [2, 102, 253]
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


def test_centres_can_be_chosen(pack: Pack) -> None:
    path = pack("tar.gz", release())
    assert values(load(path, id_val=True)) == ([0, 1, 2, 5], [3, 6])
    assert values(load(path, private_centres=[2, 1], test_centres=[0])) == ([3, 4], [0, 1])
    assert values(load(path, private_centres=(4,), test_centres=(1, 3))) == ([5], [2, 4])


def test_patches_of_other_centres_are_not_decoded(pack: Pack) -> None:
    assert values(load(pack("zip", release() | {NAMES[4]: b"broken", NAMES[1]: b"broken"}))) == ([0, 2, 5], [3, 6])


def test_the_fetched_archive_is_read_where_no_path_is_set(pack: Pack) -> None:
    settings = camelyon17.Settings(official=False)
    splits = camelyon17.load(settings, [pack("tar.gz", release())], np.random.default_rng(0))
    assert values(splits) == ([0, 2, 5], [3, 6])


def test_patches_are_resized_without_aliasing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    small = camelyon17.shrink(png(pixels), "patch")
    np.testing.assert_array_equal(small, decode(png(pixels), "patch", image_size=32))  # as image folders are
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[::2] = 255
    inside = camelyon17.shrink(png(stripes), "patch")[2:-2]
    assert np.abs(inside.astype(int) - 127).max() < 30  # sampled without averaging, they would be black and white


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 95, 3), (97, 96, 4)])
def test_patches_of_another_size_are_refused(pack: Pack, shape: tuple[int, ...]) -> None:
    files = release() | {NAMES[2]: png(np.zeros(shape, np.uint8))}
    with pytest.raises(
        CoalmineError, match=rf"data\.zip: patch '{NAMES[2]}' is {shape[0]} x {shape[1]} \(.*, expected 96 x 96; give"
    ):
        load(pack("zip", files))


@pytest.mark.parametrize("data", [b"", b"no image", patch(0)[:200]])
def test_a_broken_patch_is_named(pack: Pack, data: bytes) -> None:
    with pytest.raises(CoalmineError, match=rf"data\.tar: patch '{NAMES[5]}' is broken .*; replace the file"):
        load(pack("tar", release() | {NAMES[5]: data}))


def test_a_missing_patch_is_named(pack: Pack) -> None:
    files = release("wilds/")
    del files[f"wilds/{NAMES[2]}"], files[f"wilds/{NAMES[6]}"]
    with pytest.raises(
        CoalmineError, match=rf"data\.folder: patch 'wilds/{NAMES[2]}' is missing, and 2 of 5 in all, .*fetch or unpack"
    ):
        load(pack("folder", files))


def test_missing_metadata_are_named(pack: Pack) -> None:
    files = release()
    del files["metadata.csv"]
    with pytest.raises(
        CoalmineError, match=r"data\.tar\.gz: metadata\.csv is missing, expected it beside patches/; give"
    ):
        load(pack("tar.gz", files))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_two_releases_in_one_place_are_refused(pack: Pack, kind: str) -> None:
    files = release("camelyon17_v1.0/") | release("camelyon17_unlabeled_v1.0/")
    with pytest.raises(CoalmineError, match=r"v1\.0/metadata\.csv is a second metadata\.csv, expected one; give the"):
        load(pack(kind, files))


def test_a_patch_that_is_there_twice_is_refused(pack: Pack) -> None:
    files = release() | {f"./{NAMES[3]}": patch(9)}
    with pytest.raises(CoalmineError, match=rf"data\.tar: {NAMES[3]} is a second file of its name, expected one"):
        load(pack("tar", files))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_archive_that_is_cut_off_is_refused(pack: Pack, share: float) -> None:
    path = pack("tar.gz", release())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CoalmineError, match=r"data\.tar\.gz: damaged, cut off, .*Fetch or pack it again"):
        load(path)


@pytest.mark.parametrize("column", ["patient", "center", "split"])
def test_a_missing_column_is_named(pack: Pack, column: str) -> None:
    files = release() | {"metadata.csv": metadata().replace(column.encode(), b"other")}
    with pytest.raises(
        CoalmineError, match=rf"data\.zip: metadata\.csv: column '{column}' is missing, expected patient"
    ):
        load(pack("zip", files))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (metadata().replace(b"3328", b"left"), "line 2 has .*x_coord: 'left', .*expected whole numbers; fetch"),
        (metadata()[:-5], "line 8 has .*center: None, split: None, expected whole numbers"),
        (metadata([(4, 4, 0, 0, 2, 0, 0, 0)]), "line 2 has tumor 2, center 0, split 0, expected tumor 0 or 1"),
        (metadata([(4, 4, 0, 0, 0, 0, 5, 0)]), "line 2 has tumor 0, center 5, split 0, expected .* center 0 .. 4"),
        (metadata([(4, 4, 0, 0, 0, 0, 0, 2)]), "line 2 has tumor 0, center 0, split 2, expected .* split 0 or 1"),
        (metadata([*ROWS, ROWS[0]]), f"line 9 names {NAMES[0]}, as another line does, expected each patch once"),
        (b"\xff\xfe,patient", "is no CSV text in UTF-8 .*; fetch it again"),
        (b"", "column 'patient' is missing"),
    ],
)
def test_malformed_metadata_are_refused_with_their_line(data: bytes, message: str) -> None:
    with pytest.raises(CoalmineError, match=f"^there: {message}|^there {message}"):
        camelyon17.parse_metadata(data, "there")


@pytest.mark.parametrize(("setting", "centre"), [("private_centres", 1), ("test_centres", 1)])
def test_a_centre_without_patches_is_refused(pack: Pack, setting: str, centre: int) -> None:
    files = release() | {"metadata.csv": metadata([row for row in ROWS if row[6] != centre])}
    with pytest.raises(CoalmineError, match=rf"metadata\.csv lists no patches for {setting}: \[1\], expected at least"):
        load(pack("zip", files), **{setting: [centre]})


def test_the_release_is_known_by_its_numbers_of_patches(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack("zip", release())
    with pytest.raises(
        CoalmineError, match=r"data\.zip: metadata\.csv lists 2 patches of centre 0, expected 59436; .*official: false"
    ):
        load(path, official=True)
    monkeypatch.setattr(camelyon17, "PATCHES", {0: 2, 1: 1, 2: 2, 3: 1, 4: 1})
    with pytest.raises(CoalmineError, match=r"lists 3 patches of split 0 in centres 0, 3, 4, expected 302436; "):
        load(path, official=True)
    monkeypatch.setattr(camelyon17, "TRAIN_PATCHES", 3)
    assert values(load(path, official=True)) == ([0, 2, 5], [3, 6])


def test_the_numbers_of_patches_add_up() -> None:
    assert sum(camelyon17.PATCHES.values()) == 455_954
    assert sum(camelyon17.PATCHES[centre] for centre in camelyon17.TRAIN_CENTRES) == 302_436 + 33_560


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 302_436),
        ({"private_centres": [4, 3, 0]}, 302_436),
        ({"id_val": True}, 335_996),
        ({"id_val": True, "private_centres": [1]}, 34_904),
        ({"private_centres": [1]}, None),  # how many of them split 1 holds is not known
        ({"official": False}, None),
        ({"official": False, "id_val": True}, None),
    ],
)
def test_the_number_of_private_patches_is_known_of_the_release(settings: dict[str, object], size: int | None) -> None:
    assert camelyon17.expected_size(camelyon17.Settings.model_validate(settings)) == size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"private_centres": [0, 5]}, "private_centres"),
        ({"private_centres": []}, "private_centres"),
        ({"test_centres": [1, 1]}, "names a centre twice: 1, 1; expected each at most once"),
        ({"test_centres": [2, 3]}, "centre 3 is among private_centres and test_centres; expected it in one of them"),
        ({"sha256": "c0ffee"}, "sha256"),
    ],
)
def test_centres_are_private_or_tested_on(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        camelyon17.Settings.model_validate(settings)


def test_the_archive_is_fetched_from_codalab_unless_told_otherwise() -> None:
    (remote,) = camelyon17.files(camelyon17.Settings())
    assert remote.name == "camelyon17_v1.0.tar.gz"
    assert remote.url.startswith("https://worksheets.codalab.org/rest/bundles/0xe45e15f39fb54e9d9e919556af67aabe/")
    assert (remote.size, remote.sha256, remote.md5) == (None, None, None)
    assert camelyon17.files(camelyon17.Settings(url="http://mirror.example/c"))[0].url == "http://mirror.example/c"
    assert camelyon17.files(camelyon17.Settings(path="camelyon17_v1.0")) == []


def test_a_pinned_archive_of_other_content_is_refused(pack: Pack) -> None:
    (remote,) = camelyon17.files(camelyon17.Settings(sha256="0" * 64))
    with pytest.raises(CoalmineError, match=rf"data\.tar\.gz: SHA-256 is \w+, expected {'0' * 64}"):
        verify(remote, pack("tar.gz", release()))


def test_tissue_of_patients_is_not_public() -> None:
    assert "use cinic10 with part: imagenet" in str(camelyon17.public_objection(camelyon17.Settings()))
