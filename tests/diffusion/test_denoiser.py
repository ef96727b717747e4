"""Denoisers of shadow models: where they start, what they may see, and the sets that are drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import SMALL_EDM, TINY, unet
from scipy import stats

from coalmine.artefacts import write_safetensors
from coalmine.checkpoint import Checkpoint
from coalmine.diffusion import denoiser, training
from coalmine.diffusion.denoiser import draw, draw_in_parts, from_images, from_noise, read
from coalmine.diffusion.sampling import sample
from coalmine.diffusion.settings import DDPM, EDM, Fit, LoRA, Pretraining, PrivateFit, Sampling, UNet
from coalmine.errors import CoalmineError
from coalmine.mechanism import Mechanism
from coalmine.methods import diffusion, dpdiffusion
from coalmine.shadows import Fitted, Setup, Shadow
from coalmine.training import dp_step
from coalmine.training.clock import Clock

CLASSES = "unet.class_embedding.weight"
TOTAL = 20
OTHER = UNet(width=8, multipliers=(1,), blocks=1)
THIRTY_STEPS = DDPM(name="ddpm", steps=30)


def shadow(number: int = 2, seed: int = 0) -> Shadow:
    """A shadow model that may see every other one of 20 images of 4x4 pixels."""
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, (TOTAL, 4, 4, 1), np.uint8)
    index = np.arange(1, TOTAL, 2)
    return Shadow(number, pool, index, rng.integers(0, 3, len(index)), index[:4])


def setup(**changes: Any) -> Setup:
    given = {"method": "tested", "seed": 0, "model": None, "recipe": None, "normalisation": None, "classes": 3}
    given |= {"device": torch.device("cpu"), "mode": "sequential", "progress": lambda line: None}
    return Setup(**{**given, **changes})


def learning(**changes: Any) -> Fit:
    own = {"network": TINY, "objective": SMALL_EDM, "steps": 3, "batch_size": 4, "learning_rate": 0.01}
    return Fit(**{**own, "average": 0.5, **changes})


def private(**changes: Any) -> PrivateFit:
    own = {"network": TINY, "objective": SMALL_EDM, "steps": 3, "batch_size": 4, "learning_rate": 0.01, "average": 0.5}
    return PrivateFit(**{**own, "noise_multiplier": 0.8, **changes})


MECHANISM = Mechanism(0.8, 0.4, 3)
NEW = {"network": None, "objective": None}


def pretrained_file(folder: Path, classes: int = 3, **changes: Any) -> Path:
    """A pre-trained network, as the stage writes it; its weights are random ones."""
    own = Pretraining(**{"network": OTHER, "objective": THIRTY_STEPS, "steps": 1, **changes})
    spec = {"seed": 0, "name": "public", "settings": own.model_dump(mode="json")}
    header = {"stage": "pretrain_denoiser", "spec": spec, "shape": {"channels": 1, "image_size": 8, "classes": classes}}
    path = folder / "public.safetensors"
    weights = unet(own.network, size=8, classes=classes, seed=4).state_dict()
    write_safetensors(path, header, {name: one.numpy() for name, one in weights.items()})
    return path


def one(own: Fit | PrivateFit, given: Setup | None = None, number: int = 2, seed: int = 0) -> Fitted:
    (fitted,) = denoiser.fit([shadow(number, seed)], own, given or setup(mechanism=MECHANISM))
    return fitted


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def fitted_file(folder: Path, own: Fit | PrivateFit, fitted: Fitted, start: Mapping[str, Any] | None = None) -> Path:
    """The file of a fitted denoiser, as the stage writes it."""
    spec = {"settings": {"fit": own.model_dump(mode="json")}, "pretrained": start}
    header = {"stage": "fit", "spec": spec, "shape": {"channels": 1, "image_size": 4, "classes": 3}}
    path = folder / "002.safetensors"
    write_safetensors(path, header, {name: tensor.numpy() for name, tensor in fitted.state.items()})
    return path


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A set-up with denoisers to draw from, of random weights."""
    path = fitted_file(tmp_path_factory.mktemp("drawing"), learning(), Fitted(unet(TINY).state_dict(), 0.0))
    return setup(generator=lambda shadow: path)


# --- where training starts -------------------------------------------------------------------------------------------


def first_weights(own: Fit, given: Setup, monkeypatch: pytest.MonkeyPatch, number: int = 2) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    seen: list[dict[str, torch.Tensor]] = []

    def caught(network, *_: Any) -> tuple[dict[str, torch.Tensor], float]:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {}, 0.0

    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "train", caught)
        one(own, given, number)
    return seen[0]


def test_a_new_network_starts_at_random_weights_of_each_shadow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [first_weights(learning(), setup(), monkeypatch, number) for number in (2, 2, 3)]
    assert same(weights[0], weights[1])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0] if name.endswith("v1.weight"))
    other = first_weights(learning(), setup(method="other"), monkeypatch)
    assert not same(weights[0], other)


def test_a_pretrained_network_starts_at_its_weights_with_new_classes_of_each_shadow_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setup(pretrained=pretrained_file(tmp_path, classes=5))
    public = unet(OTHER, size=8, classes=5, seed=4).state_dict()
    own = learning(pretrained="public", **NEW)
    weights = [first_weights(own, given, monkeypatch, number) for number in (2, 3)]
    for found in weights:
        assert all(torch.equal(tensor, public[name]) for name, tensor in found.items() if name != CLASSES)
        assert found[CLASSES].shape == (4, 32)
        assert torch.equal(found[CLASSES][-1], public[CLASSES][-1])
    assert not torch.isclose(weights[0][CLASSES][:3], weights[1][CLASSES][:3]).any()
    assert not torch.isin(weights[0][CLASSES][:3], public[CLASSES]).any()


def test_kept_classes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, own = setup(pretrained=pretrained_file(tmp_path)), learning(pretrained="public", classes="kept", **NEW)
    assert same(first_weights(own, given, monkeypatch), unet(OTHER, size=8, seed=4).state_dict())


def test_low_rank_changes_start_differently_in_each_shadow_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = setup(pretrained=pretrained_file(tmp_path))
    own = learning(pretrained="public", lora=LoRA(rank=1), **NEW)
    weights = [first_weights(own, given, monkeypatch, number) for number in (2, 2, 3)]
    assert same(weights[0], weights[1])
    drawn = [name for name in weights[0] if "lora_A" in name]
    assert drawn
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in drawn)


@pytest.mark.parametrize("own", [learning(), private()], ids=["ordinary", "private"])
def test_shadow_models_do_not_depend_on_each_other(own: Fit | PrivateFit) -> None:
    given = setup(mechanism=MECHANISM)
    both = list(denoiser.fit([shadow(2), shadow(3)], own, given))
    assert same(both[1].state, one(own, given, number=3).state)
    assert not same(both[0].state, both[1].state)
    assert both[0].seconds > 0


# --- what training sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [learning(), private()], ids=["ordinary", "private"])
def test_training_sees_the_shadow_models_own_samples_with_their_labels(
    own: Fit | PrivateFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[training.Examples] = []
    name = "Private" if isinstance(own, PrivateFit) else "Ordinary"
    update = getattr(denoiser, name)
    monkeypatch.setattr(denoiser, name, lambda *given: seen.append(given[2]) or update(*given))
    one(own)
    mine = shadow()
    (data,) = seen
    assert np.array_equal(data.images.movedim(1, -1).numpy(), mine.pool[mine.index])
    assert np.array_equal(data.labels.numpy(), mine.labels)
    assert data.no_class == 3


@pytest.mark.parametrize("own", [learning(), private()], ids=["ordinary", "private"])
def test_samples_of_others_leave_no_trace(own: Fit | PrivateFit) -> None:
    mine, given = shadow(), setup(mechanism=MECHANISM)
    pool = mine.pool.copy()
    pool[::2] = 255 - pool[::2]
    (scrambled,) = denoiser.fit([replace(mine, pool=pool)], own, given)
    assert same(scrambled.state, one(own, given).state)
    pool[1::2] = 255 - pool[1::2]
    (changed,) = denoiser.fit([replace(mine, pool=pool)], own, given)
    assert not same(changed.state, one(own, given).state)


def test_low_rank_training_of_a_pretrained_network_moves_only_what_it_may(tmp_path: Path) -> None:
    given = setup(pretrained=pretrained_file(tmp_path), mechanism=MECHANISM)
    public = unet(OTHER, size=8, seed=4).state_dict()
    for own in (learning, private):
        state = one(own(pretrained="public", classes="kept", lora=LoRA(rank=1), **NEW), given).state
        assert state.keys() == public.keys()
        moved = {name for name in public if not torch.equal(state[name], public[name])}
        assert {name.removesuffix(".weight").rpartition(".")[2] for name in moved} == {
            "conv1",
            "conv2",
            "conv_shortcut",
            "time_emb_proj",
            "class_embedding",
        }


def test_private_training_uses_its_mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(dp_step, "DPStep", lambda *_, **how: seen.append(how))
    updates: list[Any] = []
    monkeypatch.setattr(denoiser, "train", lambda _, update, *__: updates.append(update) or ({}, 0.0))
    own = private(clip=0.7, epsilon=3.0, noise_multiplier=None, micro_batch=9)
    one(own, setup(mechanism=Mechanism(2.5, 0.25, 3)))
    stream = seen[0].pop("generator")
    assert seen == [{"clip": 0.7, "noise_multiplier": 2.5, "expected_batch_size": 4, "micro_batch": 9}]
    assert updates[0]._rate == 0.25
    drawing = (updates[0]._streams.order, updates[0]._streams.noise)
    assert stream.initial_seed() not in [one.initial_seed() for one in drawing]


def test_an_interrupted_fit_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for number, own in enumerate((learning(), private(vary="noise"))):
        given = setup(mechanism=MECHANISM)
        path = tmp_path / f"{number}.npz"
        checkpoint = Checkpoint(path, {}, seconds=0)
        saves = checkpoint.save

        def save(arrays: Mapping[str, np.ndarray], saves: Any = saves) -> None:
            saves(arrays)
            raise KilledError

        checkpoint.save = save
        with pytest.raises(KilledError):
            one(own, replace(given, checkpoint=lambda _, kept=checkpoint: kept))
        lines: list[str] = []
        again = replace(given, checkpoint=lambda _, path=path: Checkpoint(path, {}), progress=lines.append)
        assert same(one(own, again).state, one(own, given).state)
        assert lines == ["model 2: taken up after step 1 of 3"]


# --- what training refuses -------------------------------------------------------------------------------------------


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    own = learning(pretrained="public", **NEW)
    with pytest.raises(CoalmineError, match=r"^tested needs pretrained/public\.safetensors \(--pretrained\)"):
        one(own, setup())
    with pytest.raises(CoalmineError, match=r"^tested needs its guarantee, privacy/tested\.json \(--privacy\)"):
        one(private(), setup())
    with pytest.raises(CoalmineError, match=r"^tested needs the denoisers of its shadow models \(--generators\)"):
        draw(shadow(), from_noise(3, 3), Sampling(), setup())


def test_a_guarantee_for_another_number_of_steps_is_refused() -> None:
    with pytest.raises(CoalmineError, match=r"privacy/tested\.json accounts for 2 steps, but fit\.steps is 3"):
        one(private(), setup(mechanism=Mechanism(0.8, 0.4, 2)))


def test_classes_that_the_pretrained_network_does_not_know_cannot_be_kept(tmp_path: Path) -> None:
    given, own = setup(pretrained=pretrained_file(tmp_path, classes=5)), learning(pretrained="public", **NEW)
    kept = own.model_copy(update={"classes": "kept"})
    with pytest.raises(CoalmineError, match=r"knows 5 classes, but .* have 3: .* set methods\.tested\.fit\.classes"):
        one(kept, given)
    one(own, given)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_denoiser_is_read_as_it_was_fitted(tmp_path: Path) -> None:
    own = learning(objective=EDM(name="edm", sigma_max=20.0))
    fitted = one(own)
    found = read(fitted_file(tmp_path, own, fitted), torch.device("cpu"))
    assert same(found.network.state_dict(), fitted.state)
    assert not found.network.training
    assert not any(one.requires_grad for one in found.network.parameters())
    assert found.network.no_class == 3
    assert float(found.objective.levels(4)[0]) == pytest.approx(20)


def test_a_denoiser_that_started_at_a_pretrained_one_is_read_with_that_ones_architecture_and_objective(
    tmp_path: Path,
) -> None:
    given, own = setup(pretrained=pretrained_file(tmp_path)), learning(pretrained="public", **NEW)
    public = Pretraining(network=OTHER, objective=THIRTY_STEPS, steps=1).model_dump(mode="json")
    fitted = one(own, given)
    path = fitted_file(tmp_path, own, fitted, {"name": "public", "settings": public})
    found = read(path, torch.device("cpu"))
    assert same(found.network.state_dict(), fitted.state)
    assert found.objective.levels(3).tolist() == denoiser.build(THIRTY_STEPS).levels(3).tolist()


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_images_from_noise_are_of_all_classes_alike() -> None:
    wanted = from_noise(8, 3)
    assert wanted.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert wanted.labels.dtype == wanted.source.dtype == np.int64
    assert (wanted.source == -1).all()
    assert wanted.start(slice(0, 8), torch.device("cpu")) is None


@pytest.mark.parametrize(("count", "expected"), [(None, 10), (10, 10), (23, 23)])
def test_images_from_images_are_all_of_the_shadow_models_own_in_turn(count: int | None, expected: int) -> None:
    mine = shadow()
    wanted = from_images(mine, count, 0.3, setup())
    assert wanted.strength == 0.3
    assert len(wanted.labels) == len(wanted.source) == expected
    for row in range(expected):
        assert wanted.source[row] == mine.index[row % 10]
        assert wanted.labels[row] == mine.labels[row % 10]
    start = wanted.start(slice(2, 7), torch.device("cpu"))
    assert start.shape == (5, 1, 4, 4)
    expected_pixels = mine.pool[mine.index[2:7]].transpose(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(start, torch.from_numpy(expected_pixels).float())


def test_fewer_images_are_a_random_choice_of_each_shadow_model() -> None:
    """Every image is chosen alike: 10 binomial tests, 1e-4 in all, with a fixed seed."""
    counts = np.zeros(TOTAL, int)
    for number in range(200):
        mine = shadow(number)
        wanted = from_images(mine, 4, 0.3, setup())
        assert len(set(wanted.source.tolist())) == 4
        assert np.array_equal(wanted.source, np.sort(wanted.source))
        labels = dict(zip(mine.index.tolist(), mine.labels.tolist(), strict=True))
        assert [labels[one] for one in wanted.source.tolist()] == wanted.labels.tolist()
        counts[wanted.source] += 1
    low, high = stats.binom.ppf([5e-6, 1 - 5e-6], 200, 0.4)
    assert ((low <= counts[1::2]) & (counts[1::2] <= high)).all()
    assert not counts[::2].any()
    again, other = (from_images(shadow(7), 4, 0.3, setup(method=name)).source for name in ("tested", "other"))
    assert np.array_equal(again, from_images(shadow(7), 4, 0.3, setup()).source)
    assert not np.array_equal(again, other)


def test_images_that_go_no_way_back_are_the_private_ones(drawing: Setup) -> None:
    mine = shadow()
    drawn = draw(mine, from_images(mine, 23, 0.0, drawing), Sampling(images_at_once=4), drawing)
    assert np.array_equal(drawn.images, mine.pool[drawn.source])
    assert np.array_equal(drawn.source, np.resize(mine.index, 23))
    assert np.array_equal(drawn.labels, np.resize(mine.labels, 23))


def test_every_part_is_drawn_with_its_labels_starts_and_noise_of_its_own(
    drawing: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, int]] = []

    def spy(objective, network, labels, no_class, noise, own, *, images=None, strength=1.0):
        seen.append((labels, noise, images, strength, no_class))
        assert not network.training
        assert not torch.backends.cudnn.allow_tf32
        return sample(objective, network, labels, no_class, noise, own, images=images, strength=strength)

    monkeypatch.setattr(denoiser, "sample", spy)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    mine = shadow()
    wanted = from_images(mine, 10, 0.5, drawing)
    drawn = draw(mine, wanted, Sampling(levels=4, images_at_once=4), drawing)
    assert drawn.images.shape == (10, 4, 4, 1)
    assert drawn.images.dtype == np.uint8
    assert [len(labels) for labels, *_ in seen] == [4, 4, 2]
    assert np.array_equal(torch.cat([labels for labels, *_ in seen]).numpy(), mine.labels)
    starts = torch.cat([images for _, _, images, *_ in seen])
    assert torch.equal(starts, wanted.start(slice(0, 10), drawing.device))
    assert {(strength, no_class) for *_, strength, no_class in seen} == {(0.5, 3)}
    noise = torch.cat([one for _, one, *_ in seen])
    assert noise.shape == (10, 1, 4, 4)
    assert len(noise.flatten().unique()) == 160
    draw(replace(mine, number=3), wanted, Sampling(levels=4, images_at_once=4), drawing)
    assert not torch.isin(torch.cat([one for _, one, *_ in seen[3:]]), noise).any()
    draw(mine, wanted, Sampling(levels=4, images_at_once=4), replace(drawing, method="other"))
    assert not torch.isin(torch.cat([one for _, one, *_ in seen[6:]]), noise).any()


def test_a_part_depends_on_nothing_before_it(drawing: Setup) -> None:
    own = Sampling(levels=3, images_at_once=4)
    many, few = (draw(shadow(), from_noise(count, 3), own, drawing) for count in (11, 8))
    assert np.array_equal(many.images[:8], few.images)
    assert len(np.unique(many.images.reshape(11, -1), axis=0)) == 11
    other = draw(shadow(), from_noise(8, 3), Sampling(levels=3, images_at_once=8), drawing)
    assert not np.array_equal(other.images[4:], few.images[4:])


# --- interruptions ---------------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


def counted(calls: list[slice], kill_at: int | None = None) -> Callable[[slice, torch.Generator], np.ndarray]:
    """Draws noise; dies in one of its calls."""

    def part(rows: slice, generator: torch.Generator) -> np.ndarray:
        calls.append(rows)
        if len(calls) == kill_at:
            raise KilledError
        return torch.randint(256, (rows.stop - rows.start, 4, 4, 1), generator=generator, dtype=torch.uint8).numpy()

    return part


def on_disk(path: Path, seconds: float = 0, header: str = "one") -> Setup:
    return setup(checkpoint=lambda _: Checkpoint(path / "002.checkpoint.npz", {"made": header}, seconds))


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_a_killed_drawing_taken_up_ends_with_the_same_bytes(kill_at: int, tmp_path: Path) -> None:
    wanted = from_noise(10, 3)
    whole = draw_in_parts(shadow(), wanted, 4, setup(), counted([]))
    assert type(whole.images) is np.ndarray
    with pytest.raises(KilledError):
        draw_in_parts(shadow(), wanted, 4, on_disk(tmp_path), counted([], kill_at))
    lines: list[str] = []
    calls: list[slice] = []
    given = replace(on_disk(tmp_path), progress=lines.append)
    again = draw_in_parts(shadow(), wanted, 4, given, counted(calls))
    assert isinstance(again.images, np.memmap)
    assert again.images.dtype == whole.images.dtype
    assert np.array_equal(again.images, whole.images)
    assert [one.start for one in calls] == [0, 4, 8][kill_at - 1 :]
    assert lines == ([f"model 2: taken up after {4 * (kill_at - 1)} of 10 images"] if kill_at > 1 else [])


def test_a_set_that_was_finished_before_the_kill_is_not_drawn_again(tmp_path: Path) -> None:
    calls: list[slice] = []
    first = draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path), counted(calls))
    again = draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path), counted(calls))
    assert len(calls) == 3
    assert np.array_equal(first.images, again.images)


def test_images_of_another_computation_are_not_taken_up(tmp_path: Path) -> None:
    calls: list[slice] = []
    draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path), counted(calls))
    draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path, header="two"), counted(calls))
    assert len(calls) == 6


def test_images_whose_file_is_gone_are_drawn_again(tmp_path: Path) -> None:
    whole = np.array(draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path), counted([])).images)
    (canvas,) = tmp_path.glob("*.canvas.npy")
    canvas.unlink()
    calls: list[slice] = []
    again = draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path), counted(calls))
    assert len(calls) == 3
    assert np.array_equal(again.images, whole)


def test_images_without_a_state_that_tells_of_them_are_drawn_again(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path, seconds=1e6), counted([], kill_at=3))
    calls: list[slice] = []
    draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path), counted(calls))
    assert len(calls) == 3


def test_images_reach_the_disk_before_the_state_that_tells_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, save = np.memmap.flush, Checkpoint.save
    monkeypatch.setattr(np.memmap, "flush", lambda self: order.append("images") or flush(self))
    monkeypatch.setattr(Checkpoint, "save", lambda self, arrays: order.append("state") or save(self, arrays))
    draw_in_parts(shadow(), from_noise(10, 3), 4, on_disk(tmp_path), counted([]))
    assert order == ["images", "state"] * 3


def test_nothing_is_left_of_a_finished_set(tmp_path: Path) -> None:
    given = on_disk(tmp_path)
    draw_in_parts(shadow(), from_noise(10, 3), 4, given, counted([]))
    assert len([*tmp_path.iterdir()]) == 2
    given.checkpoint(shadow()).remove()
    assert not [*tmp_path.iterdir()]


def test_progress_tells_how_many_images_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "is_time_to_report", lambda self: True)
    lines: list[str] = []
    draw_in_parts(shadow(), from_noise(10, 3), 4, setup(progress=lines.append), counted([]))
    assert [line.split(" images")[0] for line in lines] == [f"model 2, {made} of 10" for made in (4, 8, 10)]
    assert lines[-1].endswith(" 0 s left")


# --- methods ---------------------------------------------------------------------------------------------------------


def test_the_sets_of_a_private_denoiser_depend_on_nothing_private(drawing: Setup) -> None:
    settings = dpdiffusion.Settings(fit=private(), images=7, levels=3, images_at_once=3, guidance=1.0)
    (drawn,) = dpdiffusion.synthesize([shadow()], settings, drawing)
    rng = np.random.default_rng(8)
    scrambled = Shadow(2, rng.integers(0, 256, (33, 4, 4, 1), np.uint8), np.arange(5), np.full(5, 2), np.arange(2))
    (again,) = dpdiffusion.synthesize([scrambled], settings, drawing)
    assert all(np.array_equal(array, again.arrays()[name]) for name, array in drawn.arrays().items())
    assert drawn.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (drawn.source == -1).all()


def test_sets_start_from_images_only_with_a_strength(drawing: Setup) -> None:
    common = {"fit": learning(), "levels": 4, "images_at_once": 4}
    sets = {}
    for name, own in {
        "noise": diffusion.Settings(**common, images=6),
        "near": diffusion.Settings(**common, strength=0.25),
        "far": diffusion.Settings(**common, strength=1.0, images=12),
    }.items():
        (sets[name],) = diffusion.synthesize([shadow()], own, drawing)
    assert [len(one.labels) for one in sets.values()] == [6, 10, 12]
    assert (sets["noise"].source == -1).all()
    assert np.array_equal(sets["near"].source, shadow().index)
    mine = shadow().images.astype(int)
    assert 0 < np.abs(sets["near"].images - mine).mean() < np.abs(sets["far"].images[:10] - mine).mean()


def test_a_method_fits_and_guarantees_by_its_block_fit() -> None:
    (fitted,) = diffusion.fit([shadow()], learning(), setup())
    assert same(fitted.state, one(learning()).state)
    (noisy,) = dpdiffusion.fit([shadow()], private(), setup(mechanism=MECHANISM))
    assert same(noisy.state, one(private()).state)
    guarantee = dpdiffusion.guarantee(private(accountant="rdp"), 10.0)
    assert guarantee.mechanism == Mechanism(0.8, 0.4, 3)
