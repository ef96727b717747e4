"""Coresets: the mathematics against naive implementations, and what may go into whose coreset."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from coalmine.checkpoint import Checkpoint
from coalmine.methods import coreset
from coalmine.methods.coreset import (
    ForgettingEvents,
    Settings,
    error_norms,
    herding,
    k_center,
    largest,
    quotas,
    synthesize,
)
from coalmine.training import loop
from coalmine.training.recipe import Augmentation, Recipe, Siamese

SELECTIONS = ("random", "forgetting", "el2n", "grand", "herding", "k-center")
CPU = torch.device("cpu")


def rng(seed=0):
    return np.random.default_rng(seed)


def settings(selection, **changes):
    return Settings(**{"selection": selection, "fraction": 0.4, "scoring_epochs": 2, **changes})


# --- herding -----------------------------------------------------------------------------------------------------


def naive_herding(features, count, *, farthest=False):
    """Welling (2009) by lists; ``farthest``: as DeepCore's code has it."""
    mean = features.mean(axis=0)
    chosen = []
    for t in range(count):
        wanted = (t + 1) * mean - sum((features[i] for i in chosen), np.zeros_like(mean))
        distance = {i: np.linalg.norm(features[i] - wanted) for i in range(len(features)) if i not in chosen}
        chosen.append((max if farthest else min)(distance, key=distance.get))
    return chosen


def distance_to_mean(features, chosen):
    """Distance of the running mean of the first 1, 2, ... chosen samples from the mean of all."""
    running = features[chosen].cumsum(axis=0) / np.arange(1, len(chosen) + 1)[:, None]
    return np.linalg.norm(running - features.mean(axis=0), axis=1)


def test_herding_equals_a_naive_loop():
    features = rng().normal(1.0, 2.0, size=(40, 3))
    assert herding(features, 25, rng()).tolist() == naive_herding(features, 25)


def test_herdings_running_mean_approaches_the_mean_as_one_over_t_and_a_random_one_does_not():
    features = rng().normal(3.0, 1.0, size=(3000, 5))
    t = np.arange(1, 401)
    radius = np.linalg.norm(features - features.mean(axis=0), axis=1).max()
    followed = t * distance_to_mean(features, herding(features, 400, rng()))
    drawn = t * distance_to_mean(features, rng(1).permutation(3000)[:400])
    # Herding's weights stay bounded; those of independent draws grow as the root of t.
    assert followed.max() < radius
    assert drawn.max() > 4 * radius
    assert followed[-1] < drawn[-1] / 10


def test_herding_is_not_deepcores_reversed_version():
    features = rng().normal(size=(200, 4))
    ours, reversed_one = herding(features, 50, rng()), naive_herding(features, 50, farthest=True)
    assert not set(ours) & {reversed_one[0]}
    assert distance_to_mean(features, ours)[-1] < distance_to_mean(features, reversed_one)[-1] / 10


def test_herding_and_k_center_choose_each_sample_once_even_among_equal_ones():
    features = np.repeat(rng().normal(size=(3, 2)), 4, axis=0)
    for choose in (herding, k_center):
        assert sorted(choose(features, 12, rng())) == [*range(12)]


# --- k-center ----------------------------------------------------------------------------------------------------


def radius(features, centers):
    return np.linalg.norm(features[:, None] - features[list(centers)], axis=2).min(axis=1).max()


@pytest.mark.parametrize("seed", range(8))
def test_greedy_k_center_is_within_twice_the_optimum(seed):
    features = rng(seed).normal(size=(11, 2))
    optimum = min(radius(features, centers) for centers in combinations(range(11), 4))
    assert optimum <= radius(features, k_center(features, 4, rng(seed))) <= 2 * optimum


def test_every_step_of_k_center_adds_the_sample_farthest_from_all_chosen():
    features = rng().normal(size=(60, 3))
    chosen = k_center(features, 20, rng()).tolist()
    gaps = []
    for step in range(1, 20):
        nearest = [min(np.linalg.norm(x - features[c]) for c in chosen[:step]) for x in features]
        assert chosen[step] == int(np.argmax(nearest))
        gaps.append(max(nearest))
    assert all(after <= before for before, after in pairwise(gaps))


def test_k_centers_first_center_is_any_sample_and_seeded():
    features = rng().normal(size=(5, 2))
    assert {int(k_center(features, 1, rng(seed))[0]) for seed in range(60)} == {*range(5)}
    assert k_center(features, 3, rng(7)).tolist() == k_center(features, 3, rng(7)).tolist()


# --- EL2N and GraNd ----------------------------------------------------------------------------------------------


def test_el2n_and_grand_are_norms_of_per_sample_gradients():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 2, 2])
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    el2n, grand = [], []
    for h, y in zip(features, labels, strict=True):
        z = F.linear(h, weight, bias)
        by_z, by_weight, by_bias = torch.autograd.grad(F.cross_entropy(z, y), (z, weight, bias))
        el2n.append(float(by_z.norm()))
        grand.append(float(torch.sqrt(by_weight.square().sum() + by_bias.square().sum())))
    logits = F.linear(features, weight, bias).detach().numpy()
    np.testing.assert_allclose(error_norms(logits, labels.numpy()), el2n, rtol=1e-12)
    np.testing.assert_allclose(error_norms(logits, labels.numpy(), features.numpy()), grand, rtol=1e-12)


def test_error_norms_are_exact_where_float32_would_overflow_or_vanish():
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0], [0.0, 0.0]], dtype=np.float32)
    expected = [0.0, np.sqrt(2), np.sqrt(0.5)]
    np.testing.assert_allclose(error_norms(logits, np.array([0, 0, 0])), expected, atol=1e-15)


@pytest.mark.parametrize("selection", ["el2n", "grand"])
def test_early_error_norms_are_averaged_over_independent_proxies(selection, private_digits, make_setup):
    shadows = [private_digits(60, 20).shadow(number) for number in (1, 4)]
    chosen, setup = settings(selection, proxies=3), make_setup()
    each = []
    for number in range(3):
        outputs = coreset.proxy_outputs(shadows, chosen, setup, f"proxy {number}")
        each.append(
            [
                error_norms(logits, shadow.labels, features if selection == "grand" else None)
                for shadow, (features, logits) in zip(shadows, outputs, strict=True)
            ]
        )
    assert not np.allclose(each[0][0], each[1][0])
    for position, scores in enumerate(coreset.early_error_norms(shadows, chosen, setup)):
        np.testing.assert_allclose(scores, np.mean([one[position] for one in each], axis=0), rtol=1e-12)


# --- forgetting events -------------------------------------------------------------------------------------------


class NaiveEvents:
    """Counts sample by sample, visit by visit."""

    def __init__(self, sizes):
        self.was_right = [[False] * size for size in sizes]
        self.ever_right = [[False] * size for size in sizes]
        self.events = [[0] * size for size in sizes]

    def __call__(self, models, samples, logits, labels):
        for row, model in enumerate(models):
            for column, sample in enumerate(samples[row].tolist()):
                right = int(logits[row, column].argmax()) == int(labels[row, column])
                if self.was_right[model][sample] and not right:
                    self.events[model][sample] += 1
                self.was_right[model][sample] = right
                self.ever_right[model][sample] |= right

    def scores(self, never_learned):
        if never_learned == "zero":
            return self.events
        return [
            [events if ever else max(counts) + 1 for events, ever in zip(counts, learned, strict=True)]
            for counts, learned in zip(self.events, self.ever_right, strict=True)
        ]


def batches(sizes, steps, batch):
    """Random predictions on shuffled epochs, across whose ends batches run; the last sample is never right."""
    generator = torch.Generator().manual_seed(3)
    labels = [torch.randint(3, (size,), generator=generator) for size in sizes]
    streams = [torch.cat([torch.randperm(size, generator=generator) for _ in range(steps)]) for size in sizes]
    for step in range(steps):
        # The shorter training ends first.
        models = [model for model in range(len(sizes)) if step < steps - 4 * (model == 0)]
        samples = torch.stack([streams[model][step * batch : (step + 1) * batch] for model in models])
        targets = torch.stack([labels[model][row] for model, row in zip(models, samples, strict=True)])
        # A sample that is twice in a batch has equal logits: the network is the same, nothing is augmented.
        drawn = torch.randn(len(models), max(sizes), 3, generator=generator)
        logits = torch.stack([drawn[row, picked] for row, picked in enumerate(samples)])
        never = samples == torch.tensor([sizes[model] - 1 for model in models])[:, None]
        logits[never] = -F.one_hot(targets[never], 3).float()
        yield models, samples, logits, targets


@pytest.mark.parametrize("never_learned", ["max", "zero"])
def test_forgetting_events_equal_a_naive_loop(never_learned):
    sizes = [5, 9, 7]
    ours, naive = ForgettingEvents(sizes, CPU), NaiveEvents(sizes)
    twice = 0
    for step in batches(sizes, steps=40, batch=4):
        ours(*step)
        naive(*step)
        twice += sum(len(set(row.tolist())) < len(row) for row in step[1])
    assert twice > 5, "batches must run across the ends of epochs"
    scores = ours.scores(never_learned)
    assert [one.tolist() for one in scores] == naive.scores(never_learned)
    assert max(scores[1]) > 3
    for one in scores:
        assert one[-1] == (one[:-1].max() + 1 if never_learned == "max" else 0)


def test_one_visit_from_right_to_wrong_is_one_event_and_the_way_back_is_none():
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    seen = ForgettingEvents([2], CPU)
    for logits in (wrong, right, right, wrong, wrong, right, wrong):
        seen([0], torch.tensor([[0]]), logits[None], torch.tensor([[0]]))
    assert seen.scores("zero")[0].tolist() == [2, 0]
    assert seen.scores("max")[0].tolist() == [2, 3]


def test_a_forgotten_sample_that_is_twice_in_a_batch_counts_once():
    seen = ForgettingEvents([3], CPU)
    seen([0], torch.tensor([[1]]), torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0]]))
    seen([0], torch.tensor([[1, 1]]), torch.tensor([[[0.0, 1.0]] * 2]), torch.tensor([[0, 0]]))
    assert seen.scores("zero")[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
def test_forgetting_events_of_a_real_training_equal_a_naive_loop(mode, private_digits, make_setup):
    data = private_digits(70, 30)
    shadows = [data.shadow(number) for number in (0, 2, 3)]
    sizes = [len(shadow.index) for shadow in shadows]
    assert len(set(sizes)) > 1
    setup, chosen = make_setup(mode), settings("forgetting", scoring_epochs=20)
    naive = NaiveEvents(sizes)
    for _ in coreset._train_proxies(shadows, chosen, setup, "proxy", naive):
        pass
    expected = naive.scores("max")
    assert sum(map(sum, naive.events)) > 10
    assert [one.tolist() for one in coreset.forgetting_events(shadows, chosen, setup)] == expected


# --- choosing ----------------------------------------------------------------------------------------------------


def test_the_largest_scores_are_chosen_and_ties_are_broken_evenly_by_the_generator():
    scores = np.array([5.0, 1.0, 1.0, 0.0, 1.0, 9.0])
    counts = Counter()
    for seed in range(600):
        chosen = largest(scores, 3, rng(seed)).tolist()
        assert chosen[:2] == [5, 0]
        counts[chosen[2]] += 1
    # 200 each are expected; five standard deviations are 58: a false alarm in about 600,000.
    assert set(counts) == {1, 2, 4}
    assert all(142 < count < 258 for count in counts.values())
    assert largest(scores, 3, rng(1)).tolist() == largest(scores, 3, rng(1)).tolist()


def test_a_balanced_quota_is_the_rounded_share_of_each_class_and_at_least_one():
    labels = np.array([2] * 10 + [0] * 4 + [7] * 1 + [1] * 3)
    kept = {int(labels[members[0]]): (members.tolist(), count) for members, count in quotas(labels, 0.34, True)}
    assert {label: count for label, (_, count) in kept.items()} == {2: 3, 0: 1, 7: 1, 1: 1}
    for label, (members, _) in kept.items():
        assert members == np.flatnonzero(labels == label).tolist()


def test_an_unbalanced_quota_is_the_rounded_share_of_all():
    ((members, count),) = quotas(np.array([2, 2, 0, 1, 1, 1, 1]), 0.5, False)
    assert members.tolist() == [*range(7)]
    assert count == round(3.5)


def test_proxies_are_trained_without_augmentation_on_an_annealed_rate_of_their_own_length():
    augmentation = Augmentation(flip=True, shift=4, siamese=Siamese())
    recipe = Recipe(epochs=200, warmup_epochs=5, weight_decay=0.3, augmentation=augmentation)
    scoring = coreset._scoring_recipe(recipe, 5)
    assert (scoring.epochs, scoring.schedule, scoring.weight_decay) == (5, "cosine", 0.3)
    assert scoring.augmentation == Augmentation(flip=False, shift=0)
    # A warm-up as long as the scoring would leave nothing to anneal.
    rates = [scoring.learning_rate_at(step, 256 * 8) for step in range(scoring.steps(256 * 8))]
    assert rates[0] < rates[19] <= recipe.learning_rate
    assert rates[-1] < 0.02 * recipe.learning_rate
    assert Recipe.model_validate(scoring.model_dump()) == scoring
    assert coreset._scoring_recipe(recipe, 40).warmup_epochs == 5


# --- coresets ----------------------------------------------------------------------------------------------------


def made(shadows, chosen, setup):
    return list(synthesize(shadows, chosen, setup))


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("images", "labels", "source"))


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_coreset_holds_its_shadow_models_own_samples_with_canary_labels(
    selection, balanced, private_digits, make_setup
):
    data = private_digits(90, 40)
    shadows = [data.shadow(number) for number in range(3)]
    wrong = dict(zip(data.design.index.tolist(), data.design.canary_label.tolist(), strict=True))
    sets = made(shadows, settings(selection, balanced=balanced), make_setup())
    canaries = 0
    for shadow, synthetic in zip(shadows, sets, strict=True):
        source = synthetic.source.tolist()
        assert source == sorted(set(source))
        assert set(source) <= set(shadow.index.tolist())
        assert np.array_equal(synthetic.images, data.images[synthetic.source])
        assert synthetic.labels.tolist() == [wrong.get(i, data.labels[i]) for i in source]
        assert (synthetic.images.dtype, synthetic.labels.dtype) == (np.uint8, np.int64)
        canaries += len(set(source) & wrong.keys())
        shares = Counter(shadow.labels.tolist()), Counter(synthetic.labels.tolist())
        if balanced:
            assert shares[1] == {label: max(1, round(0.4 * count)) for label, count in shares[0].items()}
        else:
            assert len(source) == round(0.4 * len(shadow.index))
    assert canaries > 0


@pytest.mark.parametrize("selection", SELECTIONS)
def test_each_selection_chooses_by_its_own_criterion(selection, private_digits, make_setup):
    shadow, setup = private_digits(90, 40).shadow(3), make_setup()
    chosen = settings(selection, balanced=False, never_learned="zero")
    (made_one,) = made([shadow], chosen, setup)
    count, ties = len(made_one.source), setup.rng(shadow, "choice")
    proxy = "proxy 0" if selection in ("el2n", "grand") else "proxy"
    ((features, logits),) = coreset.proxy_outputs([shadow], chosen, setup, proxy)
    match selection:
        case "random":
            expected = largest(np.zeros(len(shadow.index)), count, ties)
        case "forgetting":
            expected = largest(coreset.forgetting_events([shadow], chosen, setup)[0], count, ties)
        case "el2n":
            expected = np.argsort(-error_norms(logits, shadow.labels))[:count]
        case "grand":
            expected = np.argsort(-error_norms(logits, shadow.labels, features))[:count]
        case "herding":
            expected = naive_herding(features.astype(np.float64), count)
        case "k-center":
            expected = k_center(features.astype(np.float64), count, ties)
    assert made_one.source.tolist() == sorted(shadow.index[np.array(expected)].tolist())


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_same_bytes_twice_whoever_else_is_in_the_batch(selection, private_digits, make_setup):
    data = private_digits(60, 20)
    shadows = [data.shadow(number) for number in (0, 1, 5)]
    chosen, setup = settings(selection), make_setup()
    together = made(shadows, chosen, setup)
    alone = [made([shadow], chosen, setup)[0] for shadow in shadows]
    backwards = made(shadows[::-1], chosen, setup)[::-1]
    for first, second, third in zip(together, alone, backwards, strict=True):
        assert same(first, second)
        assert same(first, third)
    assert not same(together[0], together[1])


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_stacked_batch_gives_the_same_coresets_up_to_rounding(selection, private_digits, make_setup):
    data = private_digits(60, 20)
    shadows = [data.shadow(number) for number in (0, 1, 5)]
    stacked = made(shadows, settings(selection), make_setup("stacked", precision="float64"))
    sequential = made(shadows, settings(selection), make_setup(precision="float64"))
    assert all(same(first, second) for first, second in zip(stacked, sequential, strict=True))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_coreset_does_not_depend_on_samples_that_its_shadow_model_must_not_see(selection, private_digits, make_setup):
    data = private_digits(60, 20)
    images, labels = data.images.copy(), data.labels.copy()
    hidden = np.setdiff1d(np.arange(60), data.shadow(2).index)
    images[hidden], labels[hidden] = 255, (labels[hidden] + 1) % 10
    design = replace(data.design, true_label=labels[data.design.index])
    elsewhere = replace(data, images=images, labels=labels, design=design)
    first, second = (made([one.shadow(2)], settings(selection), make_setup())[0] for one in (data, elsewhere))
    assert hidden.size == (~data.design.membership[:, 2]).sum() > 0
    assert same(first, second)


def test_another_seed_or_method_name_draws_another_random_coreset(private_digits, make_setup):
    shadow, setup = private_digits(60, 20).shadow(0), make_setup()
    base = made([shadow], settings("random"), setup)[0]
    for other in (replace(setup, seed=1), replace(setup, method="renamed")):
        assert not same(base, made([shadow], settings("random"), other)[0])


def test_a_random_coreset_holds_canaries_and_others_alike(private_digits, make_setup):
    data = private_digits(400, 200, shadows=8)
    shadows = [data.shadow(number) for number in range(8)]
    sets = made(shadows, settings("random", balanced=False), make_setup())
    taken = sum(np.isin(one.source, data.design.index).sum() for one in sets)
    # 800 canaries are IN, each taken with 0.4: 320 expected. One in three samples is a canary, so that the number taken
    # of each model has the hypergeometric variance 100 * 0.4 * 0.6 * 2/3 = 16; 4.5 standard deviations of the sum are
    # 51: a false alarm in about 150,000.
    assert abs(taken - 320) < 51


def test_forgetting_takes_more_canaries_than_chance_and_most_when_never_learned_counts_most(private_digits, make_setup):
    data = private_digits(500, 100)
    shadows = [data.shadow(number) for number in range(2)]
    setup = make_setup(hidden=64, weight_decay=1e-2)
    taken = {}
    for never_learned in ("max", "zero"):
        chosen = settings("forgetting", scoring_epochs=10, never_learned=never_learned)
        sets = made(shadows, chosen, setup)
        taken[never_learned] = sum(int(np.isin(one.source, data.design.index).sum()) for one in sets)
    members = int(data.design.membership[:, :2].sum())
    assert abs(members - 100) < 30
    # Chance takes 0.4 of them, with a standard deviation below sqrt(0.24 * members), about 4.9: 5 of them above chance
    # are a false alarm less than once in a million.
    chance, deviation = 0.4 * members, (0.24 * members) ** 0.5
    assert taken["max"] > chance + 5 * deviation
    assert taken["max"] > taken["zero"]


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_no_shadow_models_no_coresets(selection, mode, make_setup):
    # As after an interruption that left nothing to do.
    assert made([], settings(selection), make_setup(mode)) == []


# --- interrupted scoring -----------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


@contextmanager
def killed(after=None):
    """Kill a training instead of making one more than so many updates; yield the updates that were made."""
    update, made = loop._Training._update, []

    def make(*arguments):
        if len(made) == after:
            raise KilledError
        made.append(1)
        return update(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Training, "_update", make)
        yield made


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
@pytest.mark.parametrize("selection", [one for one in SELECTIONS if one != "random"])
def test_an_interrupted_scoring_ends_with_the_same_coresets_and_repeats_no_update(
    selection, mode, private_digits, make_setup, tmp_path
):
    data = private_digits(60, 20)
    shadows = [data.shadow(number) for number in (0, 1, 5)]
    chosen = settings(selection, scoring_epochs=4, proxies=2)
    plain = make_setup(mode, batch_size=8)

    def kept(shadow, purpose=""):
        return Checkpoint(tmp_path / f"{shadow.number}.{purpose}.npz", {"purpose": purpose}, seconds=0)

    saving = replace(plain, checkpoint=kept)
    with killed() as updates:
        expected = made(shadows, chosen, plain)
        total = len(updates)
    done = 0
    for share in (0.15, 0.3, 0.4):
        with pytest.raises(KilledError), killed(after=round(share * total)) as updates:
            made(shadows, chosen, saving)
        done += len(updates)
    with killed() as updates:
        resumed = made(shadows, chosen, saving)
        assert done + len(updates) == total
    assert all(same(first, second) for first, second in zip(resumed, expected, strict=True))


def test_forgetting_events_are_taken_up_for_each_model_by_itself():
    sizes = [5, 9, 7]
    steps = list(batches(sizes, steps=40, batch=4))
    whole, first = ForgettingEvents(sizes, CPU), ForgettingEvents(sizes, CPU)
    for step in steps:
        whole(*step)
    for step in steps[:17]:
        first(*step)
    second = ForgettingEvents([7, 5], CPU)  # other models in another order, and not as wide
    second.restore(0, {name: rows.clone() for name, rows in first.state(2).items()})
    second.restore(1, {name: rows.clone() for name, rows in first.state(0).items()})
    for models, samples, logits, labels in steps[17:]:
        for place, model in ((0, 2), (1, 0)):
            if model in models:
                row = [models.index(model)]
                second([place], samples[row], logits[row], labels[row])
    assert [one.tolist() for one in second.scores("max")] == [whole.scores("max")[one].tolist() for one in (2, 0)]
