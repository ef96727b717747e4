from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from results_folder import PRIMARY, ResultsFolder

from coalmine.audit.roc import roc_curve
from coalmine.reporting import figure1, figure3, figure4, figure5, roc_panel, style
from coalmine.reporting.labels import Label, place_labels
from coalmine.reporting.results import Audited, load_results
from coalmine.reporting.writers import write_figure

LABELS = {"random": "random coreset", "forgetting": "forgetting coreset"}
SMALL = {"n_canaries": 60, "n_models": 16}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> ResultsFolder:
    folder = ResultsFolder(tmp_path_factory.mktemp("run"))
    folder.audit("random", {"mislabelled": 3.0, "clean": 0.8}, **SMALL)
    folder.audit(
        "forgetting",
        {"mislabelled": 5.0, "clean": 1.0},
        accuracy={"mean": 0.905, "se": None, "per_model": [0.905]},
        **SMALL,
    )
    folder.audit("shuffled", {"mislabelled": 0.0}, membership="shuffled", **SMALL)
    folder.costs("random", synthetic=[0.5] * 16, models=[2.0] * 16)
    folder.costs("forgetting", models=[3.0] * 16)
    return folder


def built(module: Any, folder: ResultsFolder, **settings: Any) -> tuple[Figure, pd.DataFrame]:
    chosen = module.Settings(labels=LABELS, **settings)
    return module.build(folder.results(chosen), chosen)


def artist(figure: Figure, gid: str, panel: int = 0) -> Any:
    (found,) = [each for each in figure.axes[panel].get_children() if each.get_gid() == gid]
    return found


def texts(figure: Figure) -> str:
    return "\n".join(each.get_text() for each in figure.findobj(lambda found: hasattr(found, "get_text")))


def test_figure1_draws_its_frame(simulated: ResultsFolder) -> None:
    figure, frame = built(figure1, simulated, methods=("random", "forgetting", "shuffled"))
    for row in frame.to_dict("records"):
        marker = artist(figure, row["method"])
        assert marker.get_xdata()[0] == row["accuracy"]
        assert marker.get_ydata()[0] == row["tpr_at_fpr_0.001"]
        bar = artist(figure, f"{row['method']}/interval")
        assert list(bar.get_ydata()) == [row["tpr_at_fpr_0.001_low"], row["tpr_at_fpr_0.001_high"]]
    assert frame["seconds_per_model"].tolist()[:2] == [2.5, 3.0]
    assert np.isnan(frame["seconds_per_model"][2])


def test_figure1_names_methods_cost_and_chance(simulated: ResultsFolder) -> None:
    figure, _ = built(figure1, simulated, methods=("random", "forgetting", "shuffled"), title="What it costs")
    said = texts(figure)
    assert "random coreset\n2.5 s/model" in said
    assert "shuffled" in said
    assert "chance" in said
    assert "What it costs" in said
    assert figure.axes[0].get_yscale() == "symlog"


def test_figure1_rings_a_guarantee_that_says_something_and_names_its_epsilon(folder: ResultsFolder) -> None:
    claims = {"plain": None, "eight": 8.0, "vacuous": 2444.3, "refuted": 1.0}
    for index, (method, epsilon) in enumerate(claims.items()):
        claimed = {"epsilon": epsilon, "delta": 1e-5, "accountant": "PLD"}
        mean = 0.9 + 0.02 * index
        folder.metrics(method, claimed=claimed, accuracy={"mean": mean, "se": 0.002, "per_model": [mean] * 4})
        folder.costs(method, models=[2.0] * 4)
    figure, frame = built(figure1, folder, methods=tuple(claims))
    ring = artist(figure, "eight/guarantee")
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.92, 0.4)
    gids = [str(each.get_gid()) for each in figure.axes[0].lines]
    assert [gid for gid in gids if gid.endswith("/guarantee")] == ["eight/guarantee"]
    assert frame["guaranteed"].tolist() == [False, True, False, False]
    assert frame["claimed_epsilon"].tolist() == [np.inf, 8.0, 2444.3, 1.0]
    said = texts(figure)
    assert "eight\nε = 8, 2.0 s/model" in said
    assert "vacuous\n2.0 s/model" in said
    assert "Ringed" in said
    assert "Ringed" not in texts(built(figure1, folder, methods=("plain", "vacuous"))[0])


def test_figure1_counts_experts_and_says_so(folder: ResultsFolder) -> None:
    folder.metrics("mtt")
    folder.costs("mtt", synthetic=[1.0] * 4, models=[2.0] * 4)
    folder.costs("plain", experts=[3.0] * 4)
    figure, frame = built(figure1, folder, methods=("mtt",), experts={"mtt": "plain"})
    assert frame["seconds_per_model"].tolist() == [6.0]
    assert "times: experts (in full for each method), synthesis and training" in " ".join(texts(figure).split())
    assert "experts" not in texts(built(figure1, folder, methods=("mtt",))[0])


def test_figure1_markers_differ_in_shape_and_colour(simulated: ResultsFolder) -> None:
    looks = [style.look(index) for index in range(88)]
    assert len({(each.colour, each.marker) for each in looks}) == 88


def test_labels_cover_neither_each_other_nor_points() -> None:
    points = [(0.90, 0.5), (0.901, 0.52), (0.905, 0.48), (0.89, 0.5), (0.1, 0.1), (0.99, 0.99)]
    with style.context():
        figure, (axes,) = style.new_figure(4.0)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        notes = place_labels(axes, [Label(f"method {i}\n{i} s/model", x, y) for i, (x, y) in enumerate(points)])
        figure.draw_without_rendering()
        boxes = [Text.get_window_extent(note) for note in notes]
        frame = axes.get_window_extent()
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])
            assert not any(box.contains(*axes.transData.transform(point)) for point in points)
            assert frame.x0 <= box.x0
            assert box.x1 <= frame.x1


def test_the_roc_grid_holds_the_operating_point_and_ends_at_one() -> None:
    membership = np.arange(8000 * 2).reshape(500, 32) % 2 == 0
    grid = roc_panel.fpr_grid([Audited(np.zeros((500, 32)), membership)])
    assert 0.001 in grid
    assert grid[-1] == 1.0
    assert 1 / 8000 <= grid[0] < 1.2 / 8000
    assert (np.diff(grid) > 0).all()


def test_a_band_holds_the_exact_curve_and_narrows_with_more_canaries() -> None:
    rng = np.random.default_rng(0)
    membership = rng.random((400, 16)).argsort(axis=1) < 8
    scores = rng.normal(size=membership.shape) + 1.5 * rng.gamma(1.0, size=(400, 1)) * membership
    widths = []
    for n in (50, 400):
        audit = Audited(scores[:n], membership[:n])
        grid = roc_panel.fpr_grid([audit])
        band = roc_panel.roc_band(audit, grid, "test")
        roc = roc_curve(*audit)
        for fpr in (0.01, 0.1):
            assert band.at(fpr) == roc.at_fpr(fpr).tpr
        assert (band.low <= band.high).all()
        assert ((band.low <= band.tpr) & (band.tpr <= band.high))[grid > 0.05].all()
        widths.append(band.high[band.index(0.1)] - band.low[band.index(0.1)])
    assert widths[1] < 0.6 * widths[0]


def test_figure3_draws_its_frame_on_logarithmic_axes(simulated: ResultsFolder) -> None:
    figure, frame = built(figure3, simulated, methods=("random", "forgetting"))
    assert len(figure.axes) == 2
    for panel, method in enumerate(("random", "forgetting")):
        axes = figure.axes[panel]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_title(loc="left") == LABELS[method]
        for case in ("worst case", "average case"):
            part = frame[(frame["method"] == method) & (frame["case"] == case)]
            line = artist(figure, f"{method}/{case}", panel)
            np.testing.assert_array_equal(line.get_xdata(), part["fpr"])
            np.testing.assert_array_equal(line.get_ydata(), part["tpr"])
            assert line.get_drawstyle() == "steps-post"
    assert "average case" in texts(figure)


@pytest.mark.parametrize(("number", "rows"), [(1, [1]), (3, [3]), (4, [2, 2]), (5, [3, 2]), (7, [3, 3, 1])])
def test_figure3_has_a_panel_for_every_method_in_rows_as_even_as_may_be(
    tmp_path: Path, number: int, rows: list[int]
) -> None:
    folder = ResultsFolder(tmp_path)
    methods = tuple(f"method-{index}" for index in range(number))
    for method in methods:
        folder.audit(method, {"mislabelled": 3.0, "clean": 0.8}, **SMALL)
    figure, _ = built(figure3, folder, methods=methods)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [*methods]
    heights = [axes.get_subplotspec().rowspan.start for axes in figure.axes]
    assert [heights.count(row) for row in range(len(rows))] == rows


def test_figure3_takes_the_average_case_from_the_entry_named(simulated: ResultsFolder) -> None:
    _, own = built(figure3, simulated, methods=("forgetting",))
    _, mapped = built(figure3, simulated, methods=("forgetting",), average={"forgetting": "random"})
    by_case = [frame.set_index("case")["tpr"] for frame in (own, mapped)]
    pd.testing.assert_series_equal(by_case[0]["worst case"], by_case[1]["worst case"])
    assert not by_case[0]["average case"].equals(by_case[1]["average case"])


def test_figure4_shares_add_up_per_side_and_are_what_is_drawn(simulated: ResultsFolder) -> None:
    figure, frame = built(figure4, simulated, methods=("random",))
    sums = frame.groupby(["case", "membership"])["share"].sum()
    assert sums.tolist() == pytest.approx([1.0] * 4)
    for panel, case in enumerate(("average case", "worst case")):
        for side in ("member", "non-member"):
            part = frame[(frame["case"] == case) & (frame["membership"] == side)]
            patch = artist(figure, side, panel)
            assert isinstance(patch, StepPatch)
            np.testing.assert_array_equal(patch.get_data().values, part["share"])
            np.testing.assert_array_equal(patch.get_data().edges[:-1], part["loss_low"])
        assert figure.axes[panel].get_xscale() == "log"
    assert "non-members (OUT)" in texts(figure)


def test_figure4_loss_is_the_cross_entropy_of_the_logit_score(simulated: ResultsFolder) -> None:
    results = load_results(simulated.root, ["random"])
    scores, membership = results.scores("random").read("mislabelled", "global-logit-1v")
    losses = figure4._losses(results, "random", "mislabelled")
    probability = 1 / (1 + np.exp(-scores))
    np.testing.assert_allclose(losses["member"], -np.log(probability[membership]), rtol=1e-6, atol=1e-15)
    assert losses["member"].mean() < losses["non-member"].mean()


def test_figure5_marks_the_operating_point_and_the_papers_number(simulated: ResultsFolder) -> None:
    figure, frame = built(figure5, simulated, methods=("random", "forgetting", "shuffled"))
    for method, part in frame.groupby("method"):
        np.testing.assert_array_equal(artist(figure, str(method)).get_ydata(), part["tpr"])
    assert artist(figure, "random/paper").get_ydata()[0] == 0.387
    assert frame["paper_tpr"].dropna().tolist() == [0.387, 0.7294]
    assert frame.loc[frame["paper_tpr"].notna(), "fpr"].tolist() == [0.001, 0.001]
    assert "random coreset: " in texts(figure)
    assert "(paper: 38.7" in texts(figure)


def test_figure5_agrees_with_the_metrics_at_the_operating_point(simulated: ResultsFolder) -> None:
    _, frame = built(figure5, simulated, methods=("random",))
    results = load_results(simulated.root, ["random"])
    for fpr, rate in results.metrics["random"].variant("mislabelled", PRIMARY).tpr.items():
        assert frame.loc[frame["fpr"] == float(fpr), "tpr"].item() == rate.value


@pytest.mark.parametrize(
    ("module", "methods"),
    [(figure1, ("random", "shuffled")), (figure3, ("random",)), (figure4, ("random",)), (figure5, ("random",))],
)
def test_a_figure_has_the_same_bytes_every_time(
    module: Any, methods: tuple[str, ...], simulated: ResultsFolder, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        write_figure(*built(module, simulated, methods=methods), tmp_path / name / "figure")
    for suffix in (".png", ".pdf", ".csv"):
        first, second = ((tmp_path / name / f"figure{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
        assert first


def test_a_figure_ignores_the_readers_own_matplotlib_settings(simulated: ResultsFolder, tmp_path: Path) -> None:
    import matplotlib

    write_figure(*built(figure5, simulated, methods=("random",)), tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 50}):
        write_figure(*built(figure5, simulated, methods=("random",)), tmp_path / "odd")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "odd.png").read_bytes()


def test_the_pdf_carries_no_date(simulated: ResultsFolder, tmp_path: Path) -> None:
    write_figure(*built(figure4, simulated, methods=("random",)), tmp_path / "figure")
    assert b"CreationDate" not in (tmp_path / "figure.pdf").read_bytes()
