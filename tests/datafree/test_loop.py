"""Synthesise, remember, distil: the whole loop for every method."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from coalmine.checkpoint import Checkpoint
from coalmine.datafree.loop import Loop
from coalmine.datafree.settings import ALGORITHMS
from coalmine.errors import CoalmineError
from coalmine.methods import dfkd
from coalmine.models.settings import MLP
from coalmine.shadows import Distilled, Setup, Teacher
from coalmine.training.augment import draw_augmentation, normalise, random_augment
from coalmine.training.inference import predict
from coalmine.training.recipe import Augmentation, Recipe

TINY: dict[str, Any] = {"batch_size": 16, "latent": 8, "width": 4, "images": 20}
SHORT: dict[str, dict[str, Any]] = {
    "dafl": {"rounds": 2, "distillation_steps": 2},
    "dfad": {"rounds": 2, "distillation_steps": 2},
    "zskt": {"rounds": 2, "distillation_steps": 2},
    "dfq": {"rounds": 2, "distillation_steps": 2},
    "deepinversion": {"generator_steps": 3, "distillation_steps": 3},
    "cmi": {"generator_steps": 3, "distillation_steps": 3, "negatives": 10},
    "fast": {"warmup": 1, "reset": 2, "distillation_steps": 3},
    "reduced": {"warmup": 1, "passes": 2},
}


def settings(algorithm: str, **changes: Any) -> dfkd.Settings:
    return dfkd.Settings(algorithm=algorithm, **{**TINY, **SHORT[algorithm], **changes})


def made(teacher: Teacher, chosen: dfkd.Settings, setup: Setup) -> Distilled:
    (distilled,) = dfkd.distil([teacher], chosen, setup)
    return distilled


def bytes_of(distilled: Distilled) -> dict[str, bytes]:
    arrays = {name: tensor.numpy().tobytes() for name, tensor in distilled.state.items()}
    return arrays | {name: array.tobytes() for name, array in distilled.synthetic.arrays().items()}


class Killed(BaseException):
    """The kill."""


class Kept(Checkpoint):
    """A checkpoint in memory that is due after every round, and kills the computation after one of them."""

    def __init__(self, kill_after: int | None = None) -> None:
        super().__init__()
        self.saved: dict[str, np.ndarray] | None = None
        self.kill_after, self.saves = kill_after, 0

    def load(self) -> dict[str, np.ndarray] | None:
        return self.saved

    def due(self) -> bool:
        return True

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.saved = {name: array.copy() for name, array in arrays.items()}
        self.saves += 1
        if self.saves == self.kill_after:
            raise Killed


# --- every method ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_teacher_gives_the_same_bytes_and_is_left_as_it_was(algorithm, teacher, make_setup) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state.items()}
    first, again = (bytes_of(made(teacher, settings(algorithm), make_setup())) for _ in range(2))
    assert first == again
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state.items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_killed_distillation_taken_up_ends_with_the_same_bytes(algorithm, rounds, teacher, make_setup) -> None:
    whole = bytes_of(made(teacher, settings(algorithm), make_setup()))
    kept = Kept(kill_after=rounds)
    setup = replace(make_setup(), checkpoint=lambda _: kept)
    with pytest.raises(Killed):
        made(teacher, settings(algorithm), setup)
    kept.kill_after = None
    assert bytes_of(made(teacher, settings(algorithm), setup)) == whole


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_published_is_a_sample_of_the_memory_with_the_teachers_answers(algorithm, teacher, make_setup) -> None:
    setup = make_setup()
    loop = Loop(teacher, settings(algorithm), setup)
    synthetic = loop.run().synthetic
    assert synthetic.images.shape == (20, 8, 8, 1)
    assert synthetic.images.dtype == np.uint8
    assert (synthetic.source == -1).all(), "a data-free method names no private sample"
    places = [
        np.flatnonzero((loop._memory.all().movedim(1, -1).numpy() == image).all(axis=(1, 2, 3)))
        for image in synthetic.images
    ]
    firsts = [int(place[0]) for place in places]
    assert firsts == sorted(firsts), "in the order in which they came"
    assert firsts[0] < len(loop._memory) - 20, "not the last alone"
    assert firsts[-1] >= 20, "nor the first"
    logits = predict(teacher.model, teacher.state, synthetic.images, setup.normalisation, 10, device=setup.device)
    expected = torch.from_numpy(logits[:, 0]).softmax(dim=1).numpy()
    assert synthetic.labels.dtype == np.float32
    np.testing.assert_allclose(synthetic.labels, expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_students_differ_between_shadow_models_and_do_not_depend_on_each_other(algorithm, teacher, make_setup) -> None:
    other = replace(teacher, number=4)
    alone = made(other, settings(algorithm), make_setup())
    first, second = dfkd.distil([teacher, other], settings(algorithm), make_setup())
    assert bytes_of(second) == bytes_of(alone)
    assert bytes_of(first) != bytes_of(second)


# --- they learn --------------------------------------------------------------------------------------------------


LEARNING: dict[str, dict[str, Any]] = {
    "dafl": {"balance": 1.0, "rounds": 20},
    "dfad": {"rounds": 20},
    "zskt": {"rounds": 10},
    "dfq": {"rounds": 10, "balance": 1.0, "one_hot": 0.1, "batch_norm": 0.1},
    "deepinversion": {"generator_steps": 20, "distillation_steps": 50},
    "cmi": {"generator_steps": 20, "distillation_steps": 50, "negatives": 50},
    "fast": {"warmup": 2, "distillation_steps": 50},
    "reduced": {"warmup": 2, "passes": None, "distillation_steps": 50},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_method_teaches_a_student_to_agree_with_its_teacher_on_real_images(
    algorithm, teacher, make_setup, real
) -> None:
    """Of ten classes, chance gives 10%; all data here are fixed, and the worst method reaches more than twice that."""
    chosen = settings(algorithm, **{"batch_size": 64, "latent": 32, "width": 8, **LEARNING[algorithm]})
    setup = make_setup(epochs=6)
    student = made(teacher, chosen, setup)
    images, labels = real

    def named(model: Any, state: Any) -> np.ndarray:
        return predict(model, state, images, setup.normalisation, 10, device=setup.device)[:, 0].argmax(axis=1)

    of_teacher = named(teacher.model, teacher.state)
    assert (of_teacher == labels).mean() > 0.95
    assert (named(setup.model, student.state) == of_teacher).mean() > 0.25


# --- the loop ----------------------------------------------------------------------------------------------------


def test_the_adversarial_loss_asks_the_student_that_is_being_taught(teacher, make_setup) -> None:
    """The bug of public code: there the teacher is passed as its own student, and the generator learns nothing."""
    loop = Loop(teacher, settings("zskt"), make_setup())
    assert loop._objective._student is loop._student.network
    before = copy.deepcopy(loop._source.network.state_dict())
    loop._synthesise(has_student=True)
    moved = [(tensor - before[name]).abs().max().item() for name, tensor in loop._source.network.state_dict().items()]
    assert max(moved) > 1e-5


def test_synthesis_leaves_the_student_and_its_statistics_alone(teacher, make_setup) -> None:
    for algorithm in ("dfq", "fast"):
        loop = Loop(teacher, settings(algorithm), make_setup())
        before = {name: tensor.clone() for name, tensor in loop._student.network.state_dict().items()}
        loop._synthesise(has_student=True)
        after = loop._student.network.state_dict()
        assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_every_shadow_model_and_every_purpose_has_a_random_stream_of_its_own(teacher, make_setup) -> None:
    loops = [Loop(each, settings("dfq"), make_setup()) for each in (teacher, replace(teacher, number=4))]
    assert len({stream.initial_seed() for loop in loops for stream in loop._streams.values()}) == 8
    first, second = ([*loop._student.network.parameters()] for loop in loops)
    assert not torch.equal(first[0], second[0]), "the student starts elsewhere, too"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_making_images_and_teaching_draw_from_different_streams(algorithm, teacher, make_setup) -> None:
    loop = Loop(teacher, settings(algorithm), make_setup())
    for step, drawn_from in (
        (lambda: loop._synthesise(has_student=True), {"synthesis", "weights"} if algorithm == "cmi" else {"synthesis"}),
        (lambda: loop._distil(0, 0), {"distillation"}),
        (loop._kept, {"choice"}),
    ):
        before = {name: stream.get_state() for name, stream in loop._streams.items()}
        step()
        moved = {name for name, stream in loop._streams.items() if not torch.equal(before[name], stream.get_state())}
        assert moved == drawn_from


def test_labels_are_drawn_from_all_classes(teacher, make_setup) -> None:
    """400 draws of ten classes: one is missing with a probability below 10^-16."""
    loop, seen = Loop(teacher, settings("fast", batch_size=400, generator_steps=1), make_setup()), []
    ask = loop._objective.__call__
    loop._objective = Mock(  # type: ignore[assignment]
        side_effect=lambda images, labels, *rest, **named: seen.append(labels) or ask(images, labels, *rest, **named),
        optimisers=[],
    )
    loop._synthesise(has_student=False)
    assert set(seen[0].tolist()) == set(range(10))


def test_the_teacher_is_frozen_and_gathers_neither_gradients_nor_statistics(teacher, make_setup) -> None:
    loop = Loop(teacher, settings("dfq"), make_setup())
    loop.run()
    assert not any(layer.training for layer in loop._teacher.modules())
    assert all(not one.requires_grad and one.grad is None for one in loop._teacher.parameters())


@pytest.mark.parametrize("algorithm", ["deepinversion", "cmi", "fast", "reduced"])
def test_the_best_images_of_a_batch_are_remembered_not_the_last(algorithm, teacher, make_setup) -> None:
    """The bug of public code: "best" images are an alias of those that move on."""
    loop = Loop(teacher, settings(algorithm, generator_steps=4), make_setup())
    seen: list[torch.Tensor] = []
    finished: list[torch.Tensor] = []
    ask = loop._objective

    class Getting:
        optimisers = ask.optimisers
        finish = finished.append

        def __call__(self, images: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            """The loss is lowest at the second step, and falls again at the last."""
            seen.append(images.detach().clone())
            return ask(images, *arguments, **named) + 1e4 * (1, 0, 3, 2)[len(seen) - 1]

    loop._objective = Getting()  # type: ignore[assignment]
    loop._synthesise(has_student=False)
    remembered = loop._memory.all()
    expected = [(images * 255).round().clamp(0, 255).byte() for images in seen]
    assert [torch.equal(remembered, each) for each in expected] == [False, True, False, False]
    (best,) = finished
    assert torch.equal(best, seen[1])


def test_every_batch_moves_what_lasts(teacher, make_setup) -> None:
    """The meta-learned generator, the average of statistics, the bank of the best images, the contrastive head."""
    banks = ("objective/contrast/bank", "objective/contrast/head")
    for algorithm, parts in {"fast": ("source/network/", "objective/history/"), "cmi": banks}.items():
        loop = Loop(teacher, settings(algorithm), make_setup())
        states = []
        for _ in range(2):
            loop._synthesise(has_student=False)
            states.append({name: array.copy() for name, array in loop._state(1).items()})
        for part in parts:
            names = [name for name in states[0] if name.startswith(part)]
            assert names
            assert not all(np.array_equal(states[0][name], states[1][name]) for name in names), part


def test_the_seconds_of_an_interrupted_job_count(teacher, make_setup) -> None:
    kept = Kept(kill_after=1)
    setup = replace(make_setup(), checkpoint=lambda _: kept)
    with pytest.raises(Killed):
        made(teacher, settings("fast"), setup)
    assert kept.saved is not None
    kept.kill_after, kept.saved["synthesis"], kept.saved["training"] = None, np.array(1e4), np.array(2e4)
    distilled = made(teacher, settings("fast"), setup)
    assert 1e4 < distilled.synthesis_seconds < 2e4 < distilled.training_seconds


def test_methods_without_a_memory_learn_from_fresh_images_and_remember_those(teacher, make_setup) -> None:
    loop = Loop(teacher, settings("dfq"), make_setup())
    loop._synthesise(has_student=True)
    assert len(loop._memory) == 0
    loop._distil(0, 0)
    assert len(loop._memory) == 2 * 16


def test_the_memory_grows_by_a_batch_a_round_and_the_warmup_teaches_nobody(teacher, make_setup) -> None:
    loop = Loop(teacher, settings("fast", warmup=2), make_setup(epochs=3))
    taught, challenged = [], []
    synthesise = loop._synthesise
    loop._synthesise = lambda *, has_student: challenged.append(has_student) or synthesise(has_student=has_student)  # type: ignore
    loop._distil = lambda epoch, number: taught.append((epoch, number, len(loop._memory)))  # type: ignore[method-assign]
    loop.run()
    assert challenged == [False, False, True, True, True]
    assert taught == [(0, 0, 48), (1, 0, 64), (2, 0, 80)]


def test_passes_show_the_student_the_whole_memory_so_often(teacher, make_setup) -> None:
    loop = Loop(teacher, settings("reduced", passes=3), make_setup(batch_size=10))
    loop._synthesise(has_student=False)
    assert loop._steps() == 5  # 3 x 16 images in batches of 10, rounded up
    loop._synthesise(has_student=False)
    assert loop._steps() == 10


@pytest.mark.parametrize("algorithm", ["dfq", "fast", "reduced"])
def test_the_learning_rate_follows_the_recipe_over_the_epochs_of_the_student(algorithm, teacher, make_setup) -> None:
    setup = make_setup(epochs=4, warmup_epochs=1, learning_rate=0.4, schedule="cosine")
    loop = Loop(teacher, settings(algorithm), setup)
    rates: list[list[float]] = []
    learn = loop._student.learn
    loop._student.learn = lambda net, x, rate: rates[-1].append(rate) or learn(net, x, rate)  # type: ignore
    distil = loop._distil
    loop._distil = lambda epoch, number: (rates.append([]) if number == 0 else None, distil(epoch, number))  # type: ignore
    loop.run()
    reference = Recipe(epochs=4, warmup_epochs=1, learning_rate=0.4, schedule="cosine", batch_size=1)
    assert len(rates) == 4
    for epoch, own in enumerate(rates):
        expected = [reference.learning_rate_at(epoch * len(own) + step, len(own)) for step in range(len(own))]
        assert own == pytest.approx(expected)
    assert rates[0][-1] == pytest.approx(0.4)


def test_the_first_layer_is_drawn_anew_once_in_the_epoch_that_is_named(teacher, make_setup) -> None:
    loop = Loop(teacher, settings("fast", warmup=1, reset=2), make_setup(epochs=4))
    resets = []
    reset = loop._source.reset
    loop._source.reset = lambda: (resets.append(len(loop._memory)), reset())  # type: ignore[method-assign]
    loop.run()
    assert resets == [3 * 16]


def test_a_student_of_another_architecture_learns_from_the_same_teacher(teacher, make_setup) -> None:
    setup = replace(make_setup(), model=MLP(hidden=(12,)))
    student = made(teacher, settings("dfq"), setup)
    assert predict(
        setup.model, student.state, student.synthetic.images, setup.normalisation, 10, device=setup.device
    ).shape == (20, 1, 10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bfloat16_and_float64_students_learn_too(algorithm, teacher, make_setup) -> None:
    for precision, dtype in (("bfloat16", torch.float32), ("float64", torch.float64)):
        student = made(teacher, settings(algorithm), make_setup(precision=precision))
        assert student.state["head.weight"].dtype == dtype


def test_students_compute_in_their_recipes_precision_and_so_do_their_teachers(teacher, make_setup) -> None:
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)):
        loop, seen = Loop(teacher, settings("dfq"), make_setup(precision=precision)), []
        for network in (loop._teacher, loop._student.network):
            network.head.register_forward_hook(lambda _, __, logits, seen=seen: seen.append(logits.dtype))
        loop._distil(0, 0)
        assert set(seen) == {dtype}


def test_the_published_answers_are_computed_in_the_recipes_precision(teacher, make_setup) -> None:
    loop, allowed = Loop(teacher, settings("dfq"), make_setup(precision="tf32")), []
    kept = loop._kept
    loop._kept = lambda: allowed.append(torch.backends.cudnn.allow_tf32) or kept()  # type: ignore[method-assign]
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        loop.run()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert allowed == [True]


def test_a_student_descends_as_pytorchs_optimiser_does_and_gathers_statistics(teacher, make_setup) -> None:
    """Momentum, Nesterov's, weight decay and the mean over images, against torch.optim.SGD."""
    setup = make_setup(momentum=0.8, nesterov=True, weight_decay=0.01)
    loop = Loop(teacher, settings("fast"), setup)
    loop._synthesise(has_student=False)
    batches = []
    learn = loop._student.learn
    loop._student.learn = lambda net, x, rate: batches.append((x, rate)) or learn(net, x, rate)  # type: ignore
    own = copy.deepcopy(loop._student.network).train().requires_grad_(True)
    optimiser = torch.optim.SGD(own.parameters(), lr=1.0, momentum=0.8, nesterov=True, weight_decay=0.01)
    loop._distil(0, 0)
    for x, rate in batches:
        optimiser.param_groups[0]["lr"] = rate
        q, p = (network(x).div(20).softmax(dim=1) for network in (own, loop._teacher))
        optimiser.zero_grad()
        (400 * (p * (p / q).log()).sum(dim=1).mean()).backward()
        optimiser.step()
    assert len(batches) == 3
    learned = loop._student.network.state_dict()
    for name, expected in own.state_dict().items():
        torch.testing.assert_close(learned[name], expected, rtol=1e-3, atol=1e-4)


def test_losses_that_are_not_finite_are_told_with_a_remedy(teacher, make_setup) -> None:
    with pytest.raises(
        CoalmineError, match=r"tested, model 3: .* lower rate .* or training\.learning_rate \(now 1e\+30\)"
    ):
        made(teacher, settings("dfq"), make_setup(learning_rate=1e30, warmup_epochs=0))


def test_images_without_a_finite_loss_and_students_with_broken_weights_are_told(teacher, make_setup) -> None:
    loop = Loop(teacher, settings("fast"), make_setup())
    with torch.no_grad():
        loop._source.network.linear.bias.fill_(torch.nan)
    with pytest.raises(CoalmineError, match="tested, model 3: the loss of the images is nan; lower rate"):
        loop._synthesise(has_student=False)
    with torch.no_grad():
        loop._student.network.head.bias[4] = torch.inf
    with pytest.raises(CoalmineError, match="model 3: some weight of the student is nan"):
        loop._exported()


def test_teaching_minimises_the_distance_that_the_method_names(teacher, make_setup) -> None:
    for algorithm, expected in (("dfad", "l1"), ("zskt", "kl"), ("fast", "kl")):
        loop = Loop(teacher, settings(algorithm), make_setup())
        target, answer = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
        found = loop._student.distance(target, answer)
        if expected == "l1":
            torch.testing.assert_close(found, (target - answer).abs().mean(dim=1))
        else:
            temperature = 20.0 if algorithm == "fast" else 1.0
            p, q = (one.div(temperature).softmax(dim=1) for one in (target, answer))
            torch.testing.assert_close(found, temperature**2 * (p * (p / q).log()).sum(dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_the_student_sees_remembered_images_each_augmented_as_its_recipe_says(flip, teacher, make_setup) -> None:
    augmentation = Augmentation(flip=flip, shift=1)
    loop = Loop(teacher, settings("fast"), make_setup(batch_size=10, augmentation=augmentation))
    loop._synthesise(has_student=False)
    again = torch.Generator()
    again.set_state(loop._streams["distillation"].get_state())
    shown = [*loop._batches(3)]
    for x, rows in zip(shown, loop._memory.batches(3, 10, again), strict=True):
        mirrored, dy, dx = draw_augmentation(again, 10, augmentation).unbind(-1)
        images = random_augment(loop._memory[rows], mirrored, dy, dx, 1)
        assert torch.equal(x, normalise(images, loop._setup.normalisation))


def test_images_are_seen_by_the_student_as_queries_are_later(teacher, make_setup) -> None:
    loop = Loop(teacher, settings("fast"), make_setup())
    loop._synthesise(has_student=False)
    augmentation = loop._recipe.augmentation.model_copy(update={"shift": 0})
    loop._recipe = loop._recipe.model_copy(update={"augmentation": augmentation})
    (x,) = loop._batches(1)
    rows = next(iter(loop._memory.batches(1, 32, torch.Generator().manual_seed(0))))
    shown = {image.numpy().tobytes() for image in normalise(loop._memory[rows], make_setup().normalisation)}
    assert {image.contiguous().numpy().tobytes() for image in x} == shown
