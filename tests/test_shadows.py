"""What a shadow model may see, and the files that it is read from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coalmine.artefacts import write_bytes, write_json, write_npy
from coalmine.audit.design import average_case, draw_design
from coalmine.errors import CoalmineError
from coalmine.run_files import design_digest, read_classes, read_design, read_images, write_design
from coalmine.shadows import PrivateData

MODELS = 8


@pytest.fixture
def data() -> PrivateData:
    """Fifty images, each of one grey level that tells its number."""
    labels = np.random.default_rng(1).integers(4, size=50)
    images = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None], (50, 2, 2, 1)).copy()
    return PrivateData(images, labels, tuple("abcd"), draw_design(labels, 4, MODELS, 20, 6))


def written(data: PrivateData, folder: Path) -> tuple[Path, ...]:
    paths = tuple(folder / name for name in ("images.npy", "labels.npy", "classes.json", "canaries.csv", "in.npy"))
    write_npy(paths[0], data.images)
    write_npy(paths[1], data.labels)
    write_json(paths[2], {"classes": data.classes})
    write_design(paths[3], paths[4], data.design)
    return paths


@pytest.mark.parametrize("number", range(MODELS))
def test_a_shadow_model_sees_all_samples_but_the_audited_ones_that_it_excludes(data: PrivateData, number: int) -> None:
    shadow = data.shadow(number)
    members = zip(data.design.index.tolist(), data.design.membership[:, number], strict=True)
    excluded = {index for index, member in members if not member}
    assert shadow.index.tolist() == [i for i in range(50) if i not in excluded]
    assert shadow.images[:, 0, 0, 0].tolist() == shadow.index.tolist()
    assert 0 < len(excluded) < 26


@pytest.mark.parametrize("number", range(MODELS))
def test_canaries_have_their_wrong_label_and_all_other_samples_the_right_one(data: PrivateData, number: int) -> None:
    shadow, design = data.shadow(number), data.design
    canaries = dict(zip(design.index[:20].tolist(), design.canary_label[:20].tolist(), strict=True))
    changed = 0
    for index, label in zip(shadow.index.tolist(), shadow.labels.tolist(), strict=True):
        assert label == canaries.get(index, data.labels[index])
        changed += label != data.labels[index]
    assert changed == design.membership[:20, number].sum() > 0


def test_in_the_average_case_the_same_samples_have_their_right_labels(data: PrivateData) -> None:
    average = replace(data, design=average_case(data.design))
    for number in range(MODELS):
        shadow = average.shadow(number)
        assert np.array_equal(shadow.index, data.shadow(number).index)
        assert np.array_equal(shadow.labels, data.labels[shadow.index])


def test_shadow_models_share_the_pool_of_images_without_copies(data: PrivateData) -> None:
    for number in range(MODELS):
        shadow = data.shadow(number)
        assert shadow.pool is data.images
        training_set = shadow.training_set()
        assert training_set.images is data.images
        assert training_set.index is shadow.index
        assert training_set.labels is shadow.labels


def test_a_view_is_no_way_to_change_the_private_data(data: PrivateData) -> None:
    before = data.images.copy(), data.labels.copy()
    shadow = data.shadow(0)
    shadow.images[:] = 255
    shadow.labels[:] = 0
    assert np.array_equal(data.images, before[0])
    assert np.array_equal(data.labels, before[1])


def test_private_data_read_from_files_are_the_same(data: PrivateData, tmp_path: Path) -> None:
    again = PrivateData.read(*written(data, tmp_path))
    assert again.digests() == data.digests()
    assert again.classes == data.classes
    for name in ("index", "true_label", "canary_label", "mislabelled", "membership"):
        mine, theirs = getattr(again.design, name), getattr(data.design, name)
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs), name
    for number in range(MODELS):
        assert np.array_equal(again.shadow(number).labels, data.shadow(number).labels)


def test_the_table_of_canaries_is_readable_by_people(data: PrivateData, tmp_path: Path) -> None:
    table = written(data, tmp_path)[3].read_text().splitlines()
    assert table[0] == "canary,index,true_label,canary_label,mislabelled"
    assert len(table) == 27
    for number, mislabelled in ((0, 1), (19, 1), (20, 0), (25, 0)):
        design = data.design
        row = [number, design.index[number], design.true_label[number], design.canary_label[number], mislabelled]
        assert table[number + 1] == ",".join(map(str, row))


def test_digests_tell_images_labels_and_every_part_of_the_design_apart(data: PrivateData) -> None:
    base = data.digests()
    other_image = data.images.copy()
    other_image[3, 1, 1, 0] += 1
    assert replace(data, images=other_image).digests()["private"] != base["private"]
    assert replace(data, images=other_image).digests()["design"] == base["design"]
    design = data.design
    seen = {base["design"]}
    for name in ("index", "true_label", "canary_label", "mislabelled", "membership"):
        array = getattr(design, name).copy()
        array.flat[0] = not array.flat[0] if array.dtype == bool else array.flat[0] + 1
        seen.add(design_digest(replace(design, **{name: array})))
    assert len(seen) == 6


def test_a_design_that_was_drawn_for_other_data_is_refused(data: PrivateData, tmp_path: Path) -> None:
    paths = written(data, tmp_path)
    labels = data.labels.copy()
    labels[data.design.index[7]] += 1
    for other in (labels, data.labels[: data.design.index.max()]):
        with pytest.raises(CoalmineError, match=r"canaries\.csv was drawn for other private data"):
            read_design(paths[3], paths[4], other)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("canary,index", "canary,position", r"canaries\.csv: the columns are \['canary', 'position'"),
        ("\n1,", "\none,", r"canaries\.csv is not a readable table of canaries"),
        ("\n1,", "\n1,1,", r"canaries\.csv is not a readable table of canaries"),
    ],
)
def test_a_broken_table_of_canaries_is_told(data: PrivateData, tmp_path: Path, old: str, new: str, told: str) -> None:
    paths = written(data, tmp_path)
    text = paths[3].read_text()
    assert old in text
    write_bytes(paths[3], text.replace(old, new, 1).encode())
    with pytest.raises(CoalmineError, match=told):
        read_design(paths[3], paths[4], data.labels)


def test_a_missing_table_of_canaries_is_told(data: PrivateData, tmp_path: Path) -> None:
    paths = written(data, tmp_path)
    paths[3].unlink()
    with pytest.raises(CoalmineError, match=r"canaries\.csv does not exist"):
        read_design(paths[3], paths[4], data.labels)


def test_membership_of_another_number_of_canaries_is_refused(data: PrivateData, tmp_path: Path) -> None:
    paths = written(data, tmp_path)
    write_npy(paths[4], data.design.membership[:-1])
    with pytest.raises(CoalmineError, match=r"in\.npy: found bool of shape \(25, 8\), expected bool of shape \(26, "):
        read_design(paths[3], paths[4], data.labels)


def test_images_and_labels_of_different_lengths_or_types_are_refused(data: PrivateData, tmp_path: Path) -> None:
    paths = written(data, tmp_path)
    write_npy(paths[1], data.labels[:-1])
    with pytest.raises(CoalmineError, match=r"labels\.npy: found int64 of shape \(49,\), expected int64 of shape \(50"):
        read_images(paths[0], paths[1])
    write_npy(paths[0], data.images.astype(np.float32))
    with pytest.raises(CoalmineError, match=r"images\.npy: found float32"):
        read_images(paths[0], paths[1])
    assert read_classes(paths[2]) == tuple("abcd")
