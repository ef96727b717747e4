"""Training of denoisers, ordinary and private: one step by hand, the average, per-example gradients, interruptions."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import ATTENTIVE, SMALL_EDM, TINY, flat, generator, unet
from scipy import stats
from torch import nn

from coalmine.checkpoint import Checkpoint
from coalmine.diffusion import training
from coalmine.diffusion.network import adapt
from coalmine.diffusion.objective import build, denoising_loss
from coalmine.diffusion.sampling import from_pixels
from coalmine.diffusion.settings import DDPM, EDM, Fit, LoRA, PrivateFit, UNet
from coalmine.diffusion.training import (
    Examples,
    Ordinary,
    Private,
    Streams,
    draw_copies,
    draw_noise,
    drop_labels,
    train,
)
from coalmine.errors import CoalmineError
from coalmine.mechanism import Mechanism
from coalmine.training.augment import View, apply_view
from coalmine.training.clock import Clock
from coalmine.training.dp_step import DPStep, per_example_gradients
from coalmine.training.recipe import Augmentation

CPU = torch.device("cpu")
AUGMENTED = Augmentation(flip=True, shift=1)


def examples(n: int = 12, size: int = 4) -> Examples:
    """Images that are all different, and so are their augmented variants."""
    rng = np.random.default_rng(0)
    return Examples.put(rng.integers(0, 256, (n, size, size, 1), np.uint8), np.arange(n) % 3, 3, CPU)


def learning(**changes: Any) -> Fit:
    own = {"network": TINY, "objective": SMALL_EDM, "steps": 6, "batch_size": 5, "learning_rate": 0.01}
    return Fit(**{**own, "average": 0.5, **changes})


def private(**changes: Any) -> PrivateFit:
    own = {"network": TINY, "objective": SMALL_EDM, "steps": 6, "batch_size": 5, "learning_rate": 0.01, "average": 0.5}
    return PrivateFit(**{**own, "noise_multiplier": 0.8, "views": 3, "micro_batch": 4, **changes})


def streams(seed: int = 0) -> Streams:
    return Streams(CPU, seed, "tested")


def mechanism(own: PrivateFit, rate: float = 0.4) -> Mechanism:
    return Mechanism(own.noise_multiplier, rate, own.steps)


class Run:
    """One training from its start: made anew, it is the same one."""

    def __init__(self, own: Fit | PrivateFit, data: Examples | None = None, seed: int = 0) -> None:
        self.own, self.data, self.streams = own, data or examples(), streams(seed)
        self.network: nn.Module = unet(own.network)
        if own.lora:
            self.network = adapt(self.network, own.lora, generator(3))
        given = (self.network, build(own.objective), self.data, own, self.streams)
        is_private = isinstance(own, PrivateFit)
        self.update = Private(*given, mechanism(own)) if is_private else Ordinary(*given)
        self.lines: list[str] = []

    def go(self, checkpoint: Checkpoint | None = None) -> dict[str, torch.Tensor]:
        checkpoint = checkpoint or Checkpoint()
        return train(self.network, self.update, self.own, self.streams, checkpoint, self.lines.append, "model 7")[0]


def with_lora(own: Fit | PrivateFit) -> Fit | PrivateFit:
    return own.model_copy(update={"lora": LoRA(rank=1)})


# --- the data --------------------------------------------------------------------------------------------------------


def test_examples_are_put_channels_first_with_their_labels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    data = Examples.put(images, np.array([2, 0, 1, 1, 0]), 3, CPU)
    assert len(data) == 5
    assert data.images.dtype == torch.uint8
    assert np.array_equal(data.images.numpy(), images.transpose(0, 3, 1, 2))
    assert (data.labels.tolist(), data.no_class) == ([2, 0, 1, 1, 0], 3)


def test_the_share_of_labels_that_are_dropped_is_the_one_asked_for() -> None:
    """A binomial test at 1e-4, with a fixed seed."""
    labels = torch.arange(20_000).view(100, 200) % 3
    left = drop_labels(labels, 3, 0.15, generator())
    dropped = left == 3
    assert torch.equal(left[~dropped], labels[~dropped])
    assert stats.binomtest(int(dropped.sum()), 20_000, 0.15).pvalue > 1e-4
    assert torch.equal(drop_labels(labels, 3, 0.0, generator()), labels)


def test_every_image_has_a_level_and_noise_of_its_own() -> None:
    """Kolmogorov-Smirnov at 1e-4, with a fixed seed."""
    sigma, noise = draw_noise(build(EDM(name="edm")), torch.zeros(60, 3, 1, 4, 4), generator())
    assert sigma.shape == (60, 3)
    assert noise.shape == (60, 3, 1, 4, 4)
    assert len(sigma.unique()) == 180
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(((sigma.log() + 1.2) / 1.2).flatten().numpy(), "norm").pvalue > 1e-4
    assert abs(float(torch.corrcoef(noise.flatten(1)[:2])[0, 1])) < 0.75  # of 48 numbers: five standard deviations


def test_streams_are_independent_and_keyed_by_names() -> None:
    states = [
        stream.initial_seed()
        for one in (Streams(CPU, 0, "a", 1), Streams(CPU, 0, "a", 2), Streams(CPU, 1, "a", 1))
        for stream in one.all().values()
    ]
    assert len(set(states)) == 9
    assert list(Streams(CPU, 0, "a").all()) == ["order", "noise", "mechanism"]


# --- an ordinary step ------------------------------------------------------------------------------------------------


class Recorded:
    """What denoising_loss was given, in every step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[torch.Tensor, ...]] = []

        def loss(objective, network, *batch):
            self.calls.append(batch)
            return denoising_loss(objective, network, *batch)

        patch.setattr(training, "denoising_loss", loss)


def variants(data: Examples, augmentation: Augmentation) -> dict[bytes, int]:
    """All augmented images, as a network sees them, and which example each is of."""
    shifts = range(-augmentation.shift, augmentation.shift + 1)
    views = [View(flip, dy, dx) for flip in {False, augmentation.flip} for dy in shifts for dx in shifts]
    return {
        from_pixels(apply_view(image, view)).numpy().tobytes(): number
        for number, image in enumerate(data.images)
        for view in views
    }


@pytest.mark.parametrize("augmentation", [AUGMENTED, Augmentation(flip=False, shift=0)], ids=["augmented", "plain"])
def test_a_batch_has_augmented_images_each_with_its_label_or_none(
    augmentation: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels: a binomial test at 1e-4; images: chi-square at 1e-4; both with a fixed seed."""
    recorded = Recorded(monkeypatch)
    run = Run(learning(batch_size=600, label_dropout=0.25, augmentation=augmentation))
    for number in range(2):
        run.update.step(number)
    known = variants(run.data, augmentation)
    assert len(known) == 12 * (18 if augmentation.flip else 1)
    counts, dropped = np.zeros(12), 0
    for images, sigma, noise, labels in recorded.calls:
        assert images.shape == noise.shape == (600, 1, 4, 4)
        assert len(sigma.unique()) == 600
        for image, label in zip(images, labels.tolist(), strict=True):
            number = known[image.contiguous().numpy().tobytes()]
            assert label in (number % 3, 3)
            counts[number] += 1
            dropped += label == 3
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.binomtest(dropped, 1200, 0.25).pvalue > 1e-4
    if augmentation.flip:
        seen = {image.contiguous().numpy().tobytes() for call in recorded.calls for image in call[0]}
        assert len(seen) > 200, "augmented anew each time"


def test_an_ordinary_step_is_one_of_adam_on_the_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    run, by_hand = Run(learning()), unet(TINY)
    adam = torch.optim.Adam(by_hand.parameters(), 0.01)
    for number in range(4):
        told = run.update.step(number)
        adam.zero_grad()
        loss = denoising_loss(build(SMALL_EDM), by_hand, *recorded.calls[-1])
        loss.backward()
        adam.step()
        torch.testing.assert_close(told, loss.detach())
    torch.testing.assert_close(flat(run.network.parameters()), flat(by_hand.parameters()))
    assert not torch.allclose(flat(by_hand.parameters()), flat(unet(TINY).parameters()))


def test_the_learning_rate_rises_to_its_value() -> None:
    run, rates = Run(learning(warmup=3)), []
    for number in range(6):
        run.update.step(number)
        rates.append(run.update.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    without = Run(learning())
    without.update.step(0)
    assert without.update.optimiser.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("own", [learning(), private()], ids=["ordinary", "private"])
def test_what_is_published_is_the_moving_average_of_the_weights(own: Fit | PrivateFit) -> None:
    run = Run(own)
    expected, step, iterates = flat(run.network.parameters()), run.update.step, []

    def watched(number: int) -> torch.Tensor | None:
        told = step(number)
        iterates.append(flat(run.network.parameters()).clone())
        return told

    run.update.step = watched
    published = run.go()
    assert len(iterates) == 6
    for t, weights in enumerate(iterates):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weights
    names = [name for name, _ in run.network.named_parameters()]
    assert list(published) == names
    torch.testing.assert_close(flat(published.values()), expected)
    assert not torch.allclose(expected, iterates[-1])


@pytest.mark.parametrize("objective", [SMALL_EDM, DDPM(name="ddpm", steps=20)], ids=["edm", "ddpm"])
def test_the_loss_goes_down(objective: EDM | DDPM) -> None:
    data = Examples.put(np.full((2, 4, 4, 1), [[[[30]]], [[[220]]]], np.uint8), np.array([0, 1]), 3, CPU)
    own = learning(objective=objective, steps=120, batch_size=16, average=0.9)
    images = from_pixels(data.images).repeat(100, 1, 1, 1)
    fixed = (images, *draw_noise(build(objective), images, generator(8)), data.labels.repeat(100))

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return float(denoising_loss(build(objective), network, *fixed))

    run = Run(own, data)
    before = loss(run.network)
    run.go()
    assert loss(run.network) < 0.5 * before, "train leaves the average in the network"


def test_training_computes_in_float32_and_restores_what_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run, allowed = Run(learning()), []
    step = run.update.step
    run.update.step = lambda number: allowed.append(torch.backends.cudnn.allow_tf32) or step(number)
    run.go()
    assert allowed == [False] * 6
    assert torch.backends.cudnn.allow_tf32


def test_dropout_is_on_in_training() -> None:
    run = Run(learning(network=UNet(width=4, multipliers=(1,), blocks=1, dropout=0.5)))
    run.network.eval()
    other = Run(learning())
    assert not torch.equal(flat(run.go().values()), flat(other.go().values()))
    assert run.network.training


def test_the_global_random_state_plays_no_part() -> None:
    dropout = UNet(width=4, multipliers=(1,), blocks=1, dropout=0.3)
    for own in (learning(network=dropout, augmentation=AUGMENTED), with_lora(learning()), private()):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        one = flat(Run(own).go().values())
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(flat(Run(own).go().values()), one)
        assert not torch.equal(flat(Run(own, seed=1).go().values()), one)


def test_dropout_differs_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    seed = torch.manual_seed
    run = Run(learning(network=UNet(width=4, multipliers=(1,), blocks=1, dropout=0.3)))
    monkeypatch.setattr(torch, "manual_seed", lambda value: seeds.append(value) or seed(value))
    run.go()
    assert len(set(seeds)) == 6


# --- private steps ---------------------------------------------------------------------------------------------------


def copies(own: PrivateFit, drawn: int = 8) -> tuple[torch.Tensor, ...]:
    return draw_copies(build(own.objective), examples(), torch.arange(drawn), own, streams())


@pytest.mark.parametrize("vary", ["all", "noise"])
def test_copies_of_an_example_differ_in_what_the_settings_say(vary: str) -> None:
    own = private(vary=vary, views=40, augmentation=AUGMENTED, label_dropout=0.5)
    images, sigma, noise, labels = copies(own)
    assert images.shape == noise.shape == (8, 40, 1, 4, 4)
    assert sigma.shape == labels.shape == (8, 40)
    known = variants(examples(), AUGMENTED)
    assert len(sigma.unique()) == 320
    assert len(noise.flatten(0, 1).unique(dim=0)) == 320
    for number in range(8):
        seen = {image.contiguous().numpy().tobytes() for image in images[number]}
        assert {known[one] for one in seen} == {number}
        told = set(labels[number].tolist())
        assert told <= {number % 3, 3}
        assert (len(seen) > 5) is (vary == "all")
        assert len(told) == (2 if vary == "all" else 1)
    assert 3 in labels[:, 0]
    assert (labels[:, 0] != 3).any(), "dropped for each example anew"
    shown = {images[number, 0].contiguous().numpy().tobytes() for number in range(8)}
    plain = {from_pixels(image).numpy().tobytes() for image in examples().images}
    assert shown - plain, "augmented in either case"


def test_copies_of_no_example_are_none() -> None:
    for vary in ("all", "noise"):
        images, sigma, noise, labels = copies(private(vary=vary, augmentation=AUGMENTED), drawn=0)
        assert images.shape == noise.shape == (0, 3, 1, 4, 4)
        assert sigma.shape == labels.shape == (0, 3)


def double(network: nn.Module, batch: tuple[torch.Tensor, ...]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return network.double(), tuple(one.double() if one.is_floating_point() else one for one in batch)


OBJECTIVES = [SMALL_EDM, DDPM(name="ddpm", steps=20), DDPM(name="ddpm", steps=20, prediction="v")]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["edm", "epsilon", "v"])
@pytest.mark.parametrize("architecture", [TINY, ATTENTIVE], ids=["group norm", "attention"])
def test_gradients_of_examples_are_those_of_a_naive_loop_for_every_parameter(architecture: UNet, objective) -> None:
    own = build(objective)
    network, batch = double(unet(architecture), copies(private(objective=objective, augmentation=AUGMENTED), drawn=3))
    each = per_example_gradients(network, partial(denoising_loss, own))(*batch)
    parameters = dict(network.named_parameters())
    assert each.keys() == parameters.keys()
    total = {name: torch.zeros_like(one) for name, one in parameters.items()}
    for number in range(3):
        loss = denoising_loss(own, network, *(tensor[number] for tensor in batch))
        naive = torch.autograd.grad(loss, list(parameters.values()))
        for (name, found), expected in zip(each.items(), naive, strict=True):
            torch.testing.assert_close(found[number], expected, rtol=1e-4, atol=1e-8, msg=name)
            total[name] += expected
    whole = denoising_loss(own, network, *(tensor.flatten(0, 1) for tensor in batch))
    at_once = torch.autograd.grad(whole, list(parameters.values()))
    for (name, found), expected in zip(total.items(), at_once, strict=True):
        torch.testing.assert_close(found / 3, expected, rtol=1e-4, atol=1e-8, msg=name)
    assert all(one.any() for one in total.values()), "every parameter has its part in the loss"


@pytest.mark.parametrize("architecture", [TINY, ATTENTIVE], ids=["group norm", "attention"])
def test_the_gradient_of_an_example_is_the_mean_over_its_copies(architecture: UNet) -> None:
    network, batch = double(unet(architecture), copies(private(augmentation=AUGMENTED), drawn=4))
    gradients = per_example_gradients(network, partial(denoising_loss, build(SMALL_EDM)))
    many = gradients(*batch)
    single = [gradients(*(tensor[:, [copy]] for tensor in batch)) for copy in range(3)]
    for name, found in many.items():
        torch.testing.assert_close(found, torch.stack([one[name] for one in single]).mean(0), rtol=1e-5, atol=1e-9)


def test_what_one_example_adds_to_a_step_is_bounded_by_clip() -> None:
    own = private(augmentation=AUGMENTED)
    batch = copies(own, drawn=6)

    def sum_of(rows: list[int]) -> torch.Tensor:
        network, given = double(unet(ATTENTIVE), tuple(tensor[rows] for tensor in batch))
        sgd = torch.optim.SGD(network.parameters(), lr=1.0)
        loss = partial(denoising_loss, build(SMALL_EDM))
        step = DPStep(
            network,
            loss,
            sgd,
            clip=0.05,
            noise_multiplier=0.0,
            expected_batch_size=1,
            generator=generator(),
            micro_batch=4,
        )
        before = flat(network.parameters()).clone()
        step(*given)
        return before - flat(network.parameters())

    whole = sum_of([*range(6)])
    for out in range(6):
        added = whole - sum_of([i for i in range(6) if i != out])
        assert float(added.norm()) == pytest.approx(0.05, rel=1e-4)


class Watched:
    """The gradients that the optimiser of a private training is given, and the examples of its steps."""

    def __init__(self, run: Run) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.batches: list[tuple[torch.Tensor, ...]] = []
        named, adam, taken = dict(run.network.named_parameters()), run.update.optimiser, run.update._step
        step = adam.step

        def watched(*arguments: Any) -> Any:
            self.gradients.append({name: one.grad.clone() for name, one in named.items() if one.grad is not None})
            return step(*arguments)

        def recorded(*batch: torch.Tensor) -> None:
            self.batches.append(batch)
            taken(*batch)

        adam.step, run.update._step = watched, recorded


def test_a_private_step_clips_adds_up_and_divides_by_the_expected_batch() -> None:
    own = private(noise_multiplier=1e-9, clip=0.3, augmentation=AUGMENTED)
    run = Run(own, seed=1)
    before = copy.deepcopy(run.network)
    watched = Watched(run)
    run.update.step(0)
    (batch,) = watched.batches
    assert len(batch[0]) not in (0, 5), "not as many as expected"
    each = per_example_gradients(before, partial(denoising_loss, build(SMALL_EDM)))(*batch)
    norms = torch.stack([torch.stack([one[i].norm() for one in each.values()]).norm() for i in range(len(batch[0]))])
    assert (norms > 0.3).any()
    scale = (0.3 / (norms + 1e-6)).clamp(max=1)
    for name, found in watched.gradients[0].items():
        torch.testing.assert_close(found, torch.einsum("i,i...->...", scale, each[name]) / 5, rtol=1e-3, atol=1e-6)
    adam = torch.optim.Adam(before.parameters(), 0.01)
    for name, parameter in before.named_parameters():
        parameter.grad = watched.gradients[0][name]
    adam.step()
    torch.testing.assert_close(flat(run.network.parameters()), flat(before.parameters()))


def test_an_empty_batch_is_noise_alone_of_the_stated_size() -> None:
    """A chi-square and a Kolmogorov-Smirnov test at 1e-4 each, with a fixed seed."""
    own = private(noise_multiplier=3.0, clip=0.5, batch_size=20)
    run = Run(own)
    run.update._rate = 0.0
    watched = Watched(run)
    for number in range(3):
        assert run.update.step(number) is None
    assert [len(batch[0]) for batch in watched.batches] == [0, 0, 0]
    noise = torch.stack([flat(one.values()) for one in watched.gradients]) * 20 / (0.5 * 3.0)
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], noise.numel())
    assert low < float(noise.square().sum()) < high
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 5 / math.sqrt(noise.shape[1]), "drawn for each step anew"


def test_every_example_is_drawn_with_the_mechanisms_rate() -> None:
    """Poisson sampling: chi-square of its 12 counts and of 40 batches' sizes, at 1e-4 each, with a fixed seed."""
    run = Run(private(label_dropout=0.0))
    drawn: list[torch.Tensor] = []
    run.update._step = lambda images, *_: drawn.append(images[:, 0])
    for number in range(400):
        run.update.step(number)
    known = variants(run.data, Augmentation(flip=False, shift=0))
    batches = [[known[image.contiguous().numpy().tobytes()] for image in batch] for batch in drawn]
    assert all(len(set(batch)) == len(batch) for batch in batches), "nobody twice"
    counts = np.bincount(np.concatenate(batches).astype(int), minlength=12)
    low, high = stats.binom.ppf([5e-5 / 12, 1 - 5e-5 / 12], 400, 0.4)
    assert ((low <= counts) & (counts <= high)).all()
    sizes = np.bincount([len(batch) for batch in batches], minlength=13)
    expected = 400 * stats.binom.pmf(np.arange(13), 12, 0.4)
    bins = [slice(0, 3), *(slice(k, k + 1) for k in range(3, 8)), slice(8, 13)]
    pooled = [[float(values[one].sum()) for one in bins] for values in (sizes, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-4


def test_the_loss_of_private_data_is_told_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "is_time_to_report", lambda self: True)
    told = {}
    for name, own in (("ordinary", learning()), ("private", private())):
        run = Run(own)
        run.go()
        told[name] = run.lines
    assert len(told["ordinary"]) == len(told["private"]) == 6
    assert all("loss" in line for line in told["ordinary"])
    assert not any("loss" in line for line in told["private"])
    assert told["private"][1].startswith("model 7, step 2 of 6")


def test_with_low_rank_changes_all_else_stays_bit_for_bit() -> None:
    for own in (with_lora(learning()), with_lora(private())):
        run = Run(own)
        before = {name: one.detach().clone() for name, one in run.network.named_parameters()}
        moving = {name for name, one in run.network.named_parameters() if one.requires_grad}
        watched = Watched(run) if isinstance(own, PrivateFit) else None
        for number in range(3):
            run.update.step(number)
        after = dict(run.network.named_parameters())
        assert {name for name in before if not torch.equal(before[name], after[name])} == moving
        if watched:
            assert all(one.keys() == moving for one in watched.gradients)


def test_what_is_published_with_low_rank_changes_is_a_plain_network() -> None:
    for own in (with_lora(learning()), with_lora(private())):
        start, published = unet(TINY).state_dict(), Run(own).go()
        assert published.keys() == start.keys()
        changed = {name for name in start if not torch.equal(start[name], published[name])}
        layers = {name.removesuffix(".weight").rpartition(".")[2] for name in changed}
        assert layers == {"conv1", "conv2", "conv_shortcut", "time_emb_proj", "class_embedding"}


# --- interruptions ---------------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


class Killing(Checkpoint):
    """A checkpoint on disk that is due after every step, and kills the training after one of its saves."""

    def __init__(self, path: Any, kill_after: int | None = None) -> None:
        super().__init__(path, {"made": "by a test"}, seconds=0)
        self.left = kill_after

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().save(arrays)
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KilledError


TRAININGS = {
    "ordinary": learning(augmentation=AUGMENTED, warmup=4),
    "ddpm": learning(objective=DDPM(name="ddpm", steps=20)),
    "dropout": learning(network=UNet(width=4, multipliers=(1,), blocks=1, dropout=0.3)),
    "private": private(augmentation=AUGMENTED),
    "lora": with_lora(learning()),
    "private lora": with_lora(private()),
}


@pytest.mark.parametrize("kind", TRAININGS)
@pytest.mark.parametrize("after", [1, 4, 6])
def test_a_killed_training_taken_up_ends_with_the_same_bytes(kind: str, after: int, tmp_path) -> None:
    path, whole = tmp_path / "000.checkpoint.npz", Run(TRAININGS[kind]).go()
    with pytest.raises(KilledError):
        Run(TRAININGS[kind]).go(Killing(path, after))
    again, steps = Run(TRAININGS[kind]), []
    step = again.update.step
    again.update.step = lambda number: steps.append(number) or step(number)
    found = again.go(Killing(path))
    assert steps == [*range(after, 6)]
    assert again.lines[0] == f"model 7: taken up after step {after} of 6"
    assert found.keys() == whole.keys()
    assert all(found[name].numpy().tobytes() == whole[name].numpy().tobytes() for name in whole)


def test_a_training_killed_between_checkpoints_repeats_what_was_lost(tmp_path) -> None:
    whole, path = Run(learning()).go(), tmp_path / "000.npz"
    killed = Run(learning())
    step, made = killed.update.step, killed.update.step

    def stopping(number: int) -> torch.Tensor:
        if number == 3:
            raise KilledError
        return made(number)

    killed.update.step = stopping
    rare = Checkpoint(path, {"made": "by a test"}, seconds=0)
    due = iter([True, False, False])
    rare.due = lambda: next(due)
    with pytest.raises(KilledError):
        killed.go(rare)
    again, steps = Run(learning()), []
    step = again.update.step
    again.update.step = lambda number: steps.append(number) or step(number)
    found = again.go(Checkpoint(path, {"made": "by a test"}))
    assert steps == [1, 2, 3, 4, 5]
    assert flat(found.values()).equal(flat(whole.values()))


def test_the_seconds_of_an_interrupted_training_are_added_up(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "seconds", lambda self: 10.0)
    path = tmp_path / "000.npz"
    with pytest.raises(KilledError):
        Run(learning()).go(Killing(path, 2))
    run = Run(learning())
    checkpoint = Killing(path)
    _, seconds = train(run.network, run.update, run.own, run.streams, checkpoint, run.lines.append, "model 7")
    assert seconds == 20.0


@pytest.mark.parametrize("reports", [False, True])
def test_a_training_that_is_no_longer_finite_is_told_with_a_remedy_at_the_next_report(
    reports: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "is_time_to_report", lambda self: reports)
    run = Run(learning(learning_rate=1e30))
    with pytest.raises(CoalmineError, match=r"^model 7: .* no longer finite; lower learning_rate \(now 1e\+30\)"):
        run.go()
    assert len(run.lines) == (1 if reports else 0), "the loss of the first step was finite still"
    steps = {float(one["step"]) for one in run.update.optimiser.state.values()}
    assert steps == {2.0 if reports else 6.0}


def test_weights_that_are_not_finite_in_the_end_are_refused_in_private_training_too() -> None:
    with pytest.raises(CoalmineError, match=r"^model 7: .* no longer finite; lower learning_rate \(now 1e\+30\)"):
        Run(private(learning_rate=1e30)).go()
