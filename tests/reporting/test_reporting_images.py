"""Figures 6 and 7: what is drawn of images and of confidences, against naive searches and loops over the files."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pydantic import ValidationError
from results_folder import ResultsFolder

from coalmine.artefacts import digest, read_npz, write_npz
from coalmine.audit.design import Design, training_indices
from coalmine.errors import CoalmineError
from coalmine.reporting import confidence, figure6, figure7
from coalmine.reporting.arrays import RunData
from coalmine.reporting.style import look
from coalmine.reporting.writers import write_figure

MODELS, CANARIES, CLEAN = 4, 12, 4


def built(module: Any, folder: ResultsFolder, *methods: str, **settings: Any) -> tuple[Figure, pd.DataFrame]:
    chosen = module.Settings(methods=methods, **{"sets": dict(zip(methods, methods, strict=True)), **settings})
    return module.build(folder.results(chosen), chosen)


def texts(figure: Figure) -> str:
    return " ".join("\n".join(each.get_text() for each in figure.findobj(lambda it: hasattr(it, "get_text"))).split())


def starts(design: Design, step: int = 3) -> list[list[int]]:
    """Private images that each shadow model's set starts from, canaries among them, and an image from nothing."""
    return [[-1, *training_indices(design, 60, shadow)[shadow::step].tolist()] for shadow in range(MODELS)]


@pytest.fixture
def pictures(folder: ResultsFolder) -> tuple[ResultsFolder, Design]:
    design = folder.data(canaries=CANARIES, clean=CLEAN, models=MODELS)
    folder.images("dm", design, starts(design), noise=0.2)
    folder.metrics("dm", design={"models": MODELS, "canaries": CANARIES, "clean": CLEAN, "views": 2})
    return folder, design


def panels(figure: Figure, method: str, kind: str) -> list[Axes]:
    named = {str(axes.get_gid()): axes for axes in figure.axes}
    return [named[f"{method}/{rank}/{kind}"] for rank in range(1, 21) if f"{method}/{rank}/{kind}" in named]


def drawn(axes: Axes) -> np.ndarray:
    (image,) = axes.images
    assert image.get_interpolation() == "nearest"
    return np.asarray(image.get_array())


def test_figure6_lists_what_a_naive_search_finds_nearest_first(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, design = pictures
    shadow = 1
    _, frame = built(figure6, folder, "dm", metric="features", shadow=shadow, images=6)
    private, public = folder.load("data/private/images") / 255, folder.load("data/public/images") / 255
    _, arrays = read_npz(folder.root / f"synthetic/dm/{shadow:03d}.npz")
    held_out = design.index[~design.membership[:, shadow]]

    def search(image: np.ndarray, pool: np.ndarray, index: np.ndarray) -> tuple[float, int]:
        distances = {int(i): 3 * math.sqrt(float(((pool[i] - image) ** 2).sum())) for i in index}
        best = min(distances, key=lambda i: distances[i])
        return distances[best], best

    found = []
    for position, image in enumerate(arrays["images"]):
        nearest = [
            search(image, private, training_indices(design, 60, shadow)),
            search(image, private, held_out),
            search(image, public, np.arange(20)),
        ]
        found.append((nearest[0][0], position, nearest))
    for row, (distance, position, nearest) in zip(frame.to_dict("records"), sorted(found)[:6], strict=True):
        assert (row["position"], row["source"]) == (position, arrays["source"][position])
        assert row["private_distance"] == pytest.approx(distance)
        shown = [row[f"{kind}_index"] for kind in ("private", "held_out", "public")]
        assert shown == [index for _, index in nearest]
        distances = [row[f"{kind}_distance"] for kind in ("private", "held_out", "public")]
        assert distances == pytest.approx([each for each, _ in nearest])
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert set(frame["n_compared"]) == set(frame["n_synthetic"]) == {len(found)}


def test_figure6_p_values_belong_to_their_images(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, _ = pictures
    _, frame = built(figure6, folder, "dm", metric="features", shadow=2)
    _, arrays = read_npz(folder.root / "visual/dm.npz")
    for row in frame.to_dict("records"):
        (place,) = np.flatnonzero((arrays["shadow"] == 2) & (arrays["position"] == row["position"]))
        assert row["p"] == arrays["features/p"][place]


def test_figure6_draws_the_images_that_its_frame_lists(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, _ = pictures
    figure, frame = built(figure6, folder, "dm", images=5)
    _, arrays = read_npz(folder.root / "synthetic/dm/000.npz")
    pools = {kind: folder.load(f"data/{kind}/images") for kind in ("private", "public")}
    names, labels = np.array(["cat", "dog", "owl"]), folder.load("data/private/labels")
    for rank, row in enumerate(frame.to_dict("records")):
        made = np.clip(arrays["images"][row["position"], ..., 0], 0, 1)
        np.testing.assert_array_equal(drawn(panels(figure, "dm", "synthetic")[rank]), made)
        for kind, pool in pools.items():
            axes = panels(figure, "dm", kind)[rank]
            np.testing.assert_array_equal(drawn(axes), pool[row[f"{kind}_index"], ..., 0] / 255)
            assert float(axes.get_xlabel()) == pytest.approx(row[f"{kind}_distance"], rel=0.005)
        assert row["class"] == names[arrays["labels"][row["position"]]]
        assert row["private_class"] == names[labels[row["private_index"]]]


def test_figure6_draws_colour_images_and_copies_in_whole_numbers(folder: ResultsFolder) -> None:
    design = folder.data(shape=(6, 6, 3))
    folder.images("random", design, starts(design), soft=True)
    path = folder.root / "synthetic/random/000.npz"
    header, arrays = read_npz(path)
    copies = np.round(255 * arrays["images"]).astype(np.uint8)
    write_npz(path, header, {**arrays, "images": copies})
    visual, every = read_npz(folder.root / "visual/random.npz")
    visual["inputs"]["synthetic"][0] = digest(copies, arrays["source"])
    write_npz(folder.root / "visual/random.npz", visual, every)
    figure, frame = built(figure6, folder, "random", images=3)
    for rank, row in enumerate(frame.to_dict("records")):
        shown = [drawn(panels(figure, "random", kind)[rank]) for kind in ("synthetic", "private")]
        assert shown[0].shape == (6, 6, 3)
        np.testing.assert_array_equal(*shown)
        assert row["class"] == ["cat", "dog", "owl"][arrays["labels"][row["position"]].argmax()]


def test_figure6_frames_the_image_that_a_synthetic_one_started_from(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, _ = pictures
    figure, frame = built(figure6, folder, "dm", images=20)
    framed = [
        to_rgb(axes.spines["left"].get_edgecolor()) == pytest.approx(look(1).colour)
        for axes in panels(figure, "dm", "private")
    ]
    assert framed == (frame["private_index"] == frame["source"]).tolist()
    assert framed.count(True) >= 10
    assert framed.count(False) >= 1


def test_figure6_sets_off_images_that_are_nearer_than_chance_allows(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, _ = pictures
    folder.visual("dm", features=0.3, level=0.5)
    figure, frame = built(figure6, folder, "dm", metric="features", images=20)
    bold = [axes.xaxis.label.get_fontweight() == "bold" for axes in panels(figure, "dm", "synthetic")]
    assert bold == (frame["p"] <= 0.5).tolist()
    assert {True, False} == set(bold)
    said = texts(figure)
    assert f"nearest {len(frame)} of {len(frame)};" in said
    assert "over all models, p ≤ 50 % for 30.0 % (by chance 50 % at most)" in said
    assert "bold: 50 % or less" in said


def test_figure6_shows_the_distance_that_is_asked_for_if_there_is_one(folder: ResultsFolder) -> None:
    design = folder.data()
    folder.images("dm", design, starts(design), metrics=("pixel", "ssim"))
    folder.images("dsa", design, starts(design))
    for metric, factor in (("ssim", 2), ("pixel", 1)):
        figure, frame = built(figure6, folder, "dm", "dsa", metric=metric)
        _, arrays = read_npz(folder.root / "visual/dm.npz")
        smallest = arrays["pixel/private"][arrays["shadow"] == 0].min()
        assert frame["private_distance"][0] == pytest.approx(factor * smallest)
        assert ("structural similarity" in texts(figure)) == (metric == "ssim")
    with pytest.raises(CoalmineError, match="distance by features, but computed for all its methods were pixel, ssim"):
        built(figure6, folder, "dm", "dsa", metric="features")


def test_figure6_leaves_out_public_images_where_there_are_none(folder: ResultsFolder) -> None:
    design = folder.data()
    folder.images("dm", design, starts(design), public=False)
    shutil.rmtree(folder.root / "data/public")
    figure, frame = built(figure6, folder, "dm")
    assert panels(figure, "dm", "public") == []
    assert "public_index" not in frame
    assert len(panels(figure, "dm", "private")) == len(frame)


def test_figure6_has_a_block_for_each_method_however_many_images_it_has(folder: ResultsFolder) -> None:
    design = folder.data()
    folder.images("many", design, starts(design))
    folder.images("two", design, [each[:2] for each in starts(design)])
    figure, frame = built(figure6, folder, "many", "two", images=7, labels={"two": "Only two"})
    assert frame.groupby("method")["rank"].max().to_dict() == {"many": 7, "two": 2}
    assert len(panels(figure, "two", "synthetic")) == 2
    assert len(figure.axes) == 3 * (7 + 2)
    assert "Only two: nearest 2 of 2;" in texts(figure)


def test_figure6_refuses_methods_without_compared_images_and_models_beyond_the_run(
    pictures: tuple[ResultsFolder, Design],
) -> None:
    folder, _ = pictures
    with pytest.raises(CoalmineError, match="lists undefended, of which no synthetic images were compared"):
        built(figure6, folder, "dm", "undefended", sets={"dm": "dm"})
    with pytest.raises(CoalmineError, match="lists dm, of which no synthetic images were compared"):
        built(figure6, folder, "dm", visual=False)
    with pytest.raises(CoalmineError, match=r"shadow is 4, but dm has the shadow models 0 to 3\."):
        built(figure6, folder, "dm", shadow=MODELS)
    with pytest.raises(ValidationError, match="images"):
        figure6.Settings(methods=["dm"], images=0)


def test_figure6_refuses_distances_of_other_images_or_of_other_data(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, _ = pictures
    path, visual = folder.root / "synthetic/dm/000.npz", folder.root / "visual/dm.npz"
    header, arrays = read_npz(path)
    write_npz(path, header, {**arrays, "images": arrays["images"] + np.float32(0.01)})
    with pytest.raises(CoalmineError, match=r"visual/dm\.npz tells of other images than .*synthetic/dm/000\.npz"):
        built(figure6, folder, "dm", metric="features")
    write_npz(path, {**header, "inputs": {"private": "0" * 16}}, arrays)
    with pytest.raises(CoalmineError, match=r"000\.npz was made with inputs.private = '0000000000000000'"):
        built(figure6, folder, "dm", metric="features")
    write_npz(path, header, arrays)
    told, distances = read_npz(visual)
    beyond = np.where(distances["shadow"] == 0, 60, distances["features/private_index"])
    write_npz(visual, told, {**distances, "features/private_index": beyond})
    with pytest.raises(
        CoalmineError, match=r"dm\.npz, field features/private_index: indices from 60 to 60 into 60 images"
    ):
        built(figure6, folder, "dm", metric="features")
    write_npz(visual, told, {**distances, "features/p": distances["features/p"][:-1]})
    with pytest.raises(CoalmineError, match=r"dm\.npz, field features/p: .* entries, but shadow has"):
        built(figure6, folder, "dm", metric="features")
    write_npz(visual, told, {**distances, "shadow": distances["shadow"] + 9})
    with pytest.raises(CoalmineError, match="No synthetic image of dm for shadow model 0 was compared"):
        built(figure6, folder, "dm", metric="features")


def naive_confidences(folder: ResultsFolder, design: Design, method: str) -> dict[tuple[str, str], list[float]]:
    """Loop over models, canaries and synthetic images."""
    found: dict[tuple[str, str], list[float]] = {(k, g): [] for k in figure7.KINDS for g in figure7.GROUPS}
    for shadow in range(MODELS):
        _, logits = read_npz(folder.root / f"logits/{method}/{shadow:03d}.npz")
        _, made = read_npz(folder.root / f"synthetic/{method}/{shadow:03d}.npz")
        for canary, index in enumerate(design.index):
            if not design.mislabelled[canary]:
                continue
            true, wrong = design.true_label[canary], design.canary_label[canary]
            inside = "used" if index in made["source"] else "unused"
            group = inside if design.membership[canary, shadow] else "out"
            rows = [(group, logits["canary_logits"][canary, 0])]
            rows += [("synthetic", logits["synthetic_logits"][i]) for i in np.flatnonzero(made["source"] == index)]
            for name, row in rows:
                odds = [math.exp(float(value)) for value in row]
                found["true", name].append(odds[true] / sum(odds))
                found["wrong", name].append(odds[wrong] / sum(odds))
    return found


def test_figure7_confidences_equal_a_naive_loop(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, design = pictures
    naive = naive_confidences(folder, design, "dm")
    found = figure7.confidences(RunData(folder.root), "dm", owner="dm", models=MODELS)
    assert found.keys() == naive.keys()
    for key, values in found.items():
        assert len(values) >= 3
        np.testing.assert_allclose(np.sort(values), np.sort(naive[key]), rtol=1e-6)
    counts = {group: len(found["true", group]) for group in figure7.GROUPS}
    assert counts["used"] + counts["unused"] == counts["out"] == CANARIES * MODELS // 2


def test_figure7_draws_the_share_of_queries_at_least_as_confident(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, design = pictures
    figure, frame = built(figure7, folder, "dm", labels={"dm": "DM, private"})
    naive = naive_confidences(folder, design, "dm")
    for (kind, group), part in frame.groupby(["label_kind", "group"]):
        values = np.array(naive[kind, group])
        assert part["n"].unique().tolist() == [len(values)]
        assert part["mean"].iloc[0] == pytest.approx(values.mean())
        for row in part.iloc[::20].itertuples():
            assert row.share == pytest.approx((values >= row.confidence).mean())
        axes = figure.axes[figure7.KINDS.index(kind)]
        (line,) = [each for each in axes.get_lines() if each.get_gid() == group]
        np.testing.assert_array_equal(line.get_xdata(), part["confidence"])
        np.testing.assert_array_equal(line.get_ydata(), part["share"])
    assert figure.axes[0].get_title(loc="left") == "DM, private"
    assert figure.axes[1].get_xlabel() == "confidence in the wrong label"
    said = texts(figure)
    assert all(name in said for name in figure7.GROUPS.values())
    assert f"{CANARIES * MODELS // 2} OUT" in said


def test_figure7_counts_whoever_is_exactly_as_confident() -> None:
    curve = confidence.curves({("out",): np.array([0.0, 0.5, 0.5, 1.0])}, ("group",), method="dm").set_index(
        "confidence"
    )
    assert curve["share"][[0.0, 0.005, 0.5, 0.505, 1.0]].tolist() == [1.0, 0.75, 0.75, 0.25, 0.25]


def test_figure7_asks_models_without_synthetic_sets_about_canaries_only(
    pictures: tuple[ResultsFolder, Design],
) -> None:
    folder, design = pictures
    folder.images("undefended", design, [[]] * MODELS)
    shutil.rmtree(folder.root / "synthetic/undefended")
    folder.metrics("undefended")
    figure, frame = built(figure7, folder, "dm", "undefended", sets={"dm": "dm"})
    own = frame[frame["method"] == "undefended"]
    assert own.groupby("group")["n"].first().to_dict() == {"out": 24, "unused": 24}
    assert len(figure.axes) == 4


def test_figure7_refuses_what_it_cannot_show(pictures: tuple[ResultsFolder, Design]) -> None:
    folder, _ = pictures
    path = folder.root / "logits/dm/001.npz"
    header, arrays = read_npz(path)
    write_npz(path, header, {**arrays, "synthetic_logits": arrays["synthetic_logits"][:-1]})
    with pytest.raises(CoalmineError, match=r"model 1 was asked about \d+ synthetic images, but its set has \d+"):
        built(figure7, folder, "dm")
    write_npz(path, {**header, "inputs": {**header["inputs"], "design": "0" * 16}}, arrays)
    with pytest.raises(CoalmineError, match=r"001\.npz was made with inputs.design = '0000000000000000'"):
        built(figure7, folder, "dm")
    write_npz(path, {**header, "shadow": 2}, arrays)
    with pytest.raises(CoalmineError, match=r"001\.npz was made with shadow = 2, but 1 is needed"):
        built(figure7, folder, "dm")
    folder.metrics("shuffled", membership="shuffled")
    with pytest.raises(CoalmineError, match="figure7 lists shuffled, a control"):
        built(figure7, folder, "shuffled", sets={})


@pytest.mark.parametrize("module", [figure6, figure7])
def test_figures_of_images_have_the_same_bytes_every_time(
    module: Any, pictures: tuple[ResultsFolder, Design], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_figure(*built(module, pictures[0], "dm"), tmp_path / name / "figure")
    for suffix in (".png", ".pdf", ".csv"):
        first, second = ((tmp_path / name / f"figure{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
        assert first
