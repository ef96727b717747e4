"""Coresets: train on a fraction of the private samples, chosen at random or by a score.

A coreset publishes some people's data verbatim and leaves the others out. Every score is computed from one shadow
model's own data only, with proxy networks of the run's architecture trained without augmentation on those data.

- ``random``: uniformly, without replacement.
- ``forgetting``: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning"
  (ICLR 2019): the samples that the proxy forgot most often, that is, went from right to wrong between two visits.
- ``el2n`` and ``grand``: Paul et al., "Deep Learning on a Data Diet" (NeurIPS 2021): the largest error norm, or
  gradient norm of the last layer, early in training, averaged over initialisations.
- ``herding``: Welling, "Herding dynamical weights to learn" (ICML 2009): greedily keep the mean feature.
- ``k-center``: Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach"
  (ICLR 2018): greedily add the sample farthest from all chosen ones.

Mislabelled canaries are hard samples, so scores that keep hard samples keep canaries: the audited paper (S1) found
74% of them in the forgetting coreset and about 40% in the random one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field
from scipy.special import softmax

from coalmine import settings
from coalmine.costs.work import Counter, Work
from coalmine.shadows import Setup, Shadow, Synthetic

if TYPE_CHECKING:
    import torch

    from coalmine.training.loop import Observer, Trained
    from coalmine.training.recipe import Recipe

Choice = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""Chooses so many of the rows that it is given, by their scores or features."""


class Settings(settings.Settings):
    """Hyper-parameters of a coreset."""

    selection: Literal["random", "forgetting", "el2n", "grand", "herding", "k-center"] = Field(
        description="How samples are chosen."
    )
    fraction: float = Field(0.4, gt=0, lt=1, description="Share of the samples that is kept (S1: about 0.4).")
    balanced: bool = Field(True, description="Keep that share of every class, by the given (canary) labels.")
    scoring_epochs: int = Field(40, ge=2, description="Epochs of a proxy network (DeepCore: 40; EL2N, GraNd: few).")
    proxies: int = Field(1, ge=1, description="Initialisations that el2n and grand average over (DeepCore: 10).")
    never_learned: Literal["max", "zero"] = Field(
        "max",
        description="Forgetting events of a sample that the proxy was never right on: more than any other (Toneva et "
        "al.) or none (DeepCore's code, which thereby ranks it with the easiest).",
    )


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield the coreset of each shadow model, in order, its images in the order of the private data."""
    for group in setup.groups(shadows):
        for shadow, ranking in zip(group, _rankings(group, settings, setup), strict=True):
            chosen = np.sort(ranking)
            yield Synthetic(shadow.images[chosen], shadow.labels[chosen], source=shadow.index[chosen])


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes: proxy networks and, of greedy choices, distances to each that is chosen."""
    population, chosen = counter.population, settings.fraction * counter.population
    kept = counter.image_set(chosen)
    if settings.selection == "random":
        return kept
    scoring = counter.training(population, epochs=settings.scoring_epochs)
    if settings.selection == "forgetting":
        return kept + scoring
    proxy = scoring + counter.looks(counter.model, population)
    if settings.selection in ("el2n", "grand"):
        return kept + proxy * settings.proxies
    groups = counter.classes if settings.balanced else 1
    dimension = 512  # of features, about
    return kept + proxy + Work(chosen * population / groups * dimension, 6 * chosen)


def _rankings(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[np.ndarray]:
    """Yield, per shadow model, the chosen positions within its data."""
    for shadow, (values, choose) in zip(shadows, _criteria(shadows, settings, setup), strict=True):
        rng = setup.rng(shadow, "choice")
        groups = quotas(shadow.labels, settings.fraction, settings.balanced)
        yield np.concatenate([members[choose(values[members], quota, rng)] for members, quota in groups])


def _criteria(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[tuple[np.ndarray, Choice]]:
    """Yield, per shadow model, the scores (n,) or features (n, d) of its samples and how to choose by them."""
    match settings.selection:
        case "random":
            yield from ((np.zeros(len(shadow.index)), largest) for shadow in shadows)
        case "forgetting":
            yield from ((events, largest) for events in forgetting_events(shadows, settings, setup))
        case "el2n" | "grand":
            yield from ((norms, largest) for norms in early_error_norms(shadows, settings, setup))
        case "herding" | "k-center":
            greedy = herding if settings.selection == "herding" else k_center
            outputs = proxy_outputs(shadows, settings, setup, "proxy")
            yield from ((features.astype(np.float64), greedy) for features, _ in outputs)


def quotas(labels: np.ndarray, fraction: float, balanced: bool) -> Iterator[tuple[np.ndarray, int]]:
    """Yield groups of positions and how many of each are kept: one group a class, or a single one."""
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)] if balanced else [np.arange(len(labels))]
    for members in groups:
        yield members, max(1, round(fraction * len(members)))


def largest(scores: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the positions of the ``count`` largest scores, ties broken at random.

    Most samples are never forgotten, so ties are the rule; breaking them by position would favour some people.
    """
    return np.lexsort((rng.random(len(scores)), -scores))[:count]


def herding(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Greedily choose samples whose running mean follows the mean feature (Welling 2009).

    At step t the sample nearest to ``(t + 1) mean - sum of the chosen`` is added, so that the distance of the running
    mean from the mean falls as 1/t. (DeepCore's code adds the farthest.)

    Args:
        features: float (n, d).
        count: how many to choose, at most n.
        rng: not used, herding is deterministic.
    """
    mean, total = features.mean(axis=0), np.zeros(features.shape[1])
    free, chosen = np.ones(len(features), dtype=bool), []
    for step in range(count):
        residual = (step + 1) * mean - total
        distance = np.where(free, np.square(features - residual).sum(axis=1), np.inf)
        chosen.append(int(distance.argmin()))
        free[chosen[-1]] = False
        total += features[chosen[-1]]
    return np.array(chosen, dtype=np.int64)


def k_center(features: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Greedily add the sample farthest from its nearest chosen one; the first at random (Sener & Savarese 2018).

    Args:
        features: float (n, d).
        count: how many to choose, at most n.
        rng: draws the first center.
    """
    chosen = [int(rng.integers(len(features)))]
    nearest = np.square(features - features[chosen[0]]).sum(axis=1)
    while len(chosen) < count:
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(axis=1))
    return np.array(chosen, dtype=np.int64)


class ForgettingEvents:
    """Counts, per sample, how often a network that was right on it is wrong at the next visit.

    Predictions are those of the training step itself, before its update, as in Toneva et al.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        import torch

        width = max(sizes, default=0)
        self._sizes = sizes
        self._right = torch.zeros(len(sizes), width, dtype=torch.bool, device=device)
        self._learned = torch.zeros_like(self._right)
        self._events = torch.zeros(len(sizes), width, dtype=torch.int32, device=device)

    def __call__(
        self, models: Sequence[int], samples: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """Take in one batch: int64 (model, batch) samples, float (model, batch, class) logits, int64 labels."""
        import torch

        row = torch.tensor(models, device=samples.device)[:, None]
        right = logits.argmax(dim=-1) == labels
        # A batch that runs across the end of an epoch may hold a sample twice, with equal logits: plain assignment
        # counts it once.
        self._events[row, samples] += (self._right[row, samples] & ~right).int()
        self._right[row, samples] = right
        self._learned[row, samples] |= right

    def state(self, model: int) -> dict[str, torch.Tensor]:
        """Return what was counted for one model, ``(n,)`` each, for a checkpoint."""
        return {name: rows[model, : self._sizes[model]] for name, rows in self._rows().items()}

    def restore(self, model: int, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        for name, rows in self._rows().items():
            rows[model, : self._sizes[model]] = state[name].to(rows.device)

    def _rows(self) -> dict[str, torch.Tensor]:
        return {"right": self._right, "learned": self._learned, "events": self._events}

    def scores(self, never_learned: str) -> list[np.ndarray]:
        """Return float64 (n,) per model: forgetting events, never-learned samples above all others or at zero."""
        counts = [events[:size].double().cpu().numpy() for events, size in zip(self._events, self._sizes, strict=True)]
        if never_learned == "zero":
            return counts
        learned = [row[:size].cpu().numpy() for row, size in zip(self._learned, self._sizes, strict=True)]
        return [np.where(ever, count, count.max() + 1) for count, ever in zip(counts, learned, strict=True)]


def forgetting_events(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> list[np.ndarray]:
    """Train one proxy per shadow model and return its forgetting events, float64 (n,) each."""
    observer = ForgettingEvents([len(shadow.index) for shadow in shadows], setup.device)
    deque(_train_proxies(shadows, settings, setup, "proxy", observer), maxlen=0)
    return observer.scores(settings.never_learned)


def early_error_norms(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> list[np.ndarray]:
    """Return EL2N, ``E ||softmax(f(x)) - onehot(y)||``, or GraNd of the last layer, float64 (n,) per shadow model.

    The gradient of the cross entropy by the last layer's weights and bias is ``(p - y) (h, 1)^T``, hence its norm is
    ``||p - y|| sqrt(1 + ||h||^2)`` with features h (Paul et al. 2021, section 2).
    """
    total = [np.zeros(len(shadow.index)) for shadow in shadows]
    for number in range(settings.proxies):
        for score, shadow, (features, logits) in zip(
            total, shadows, proxy_outputs(shadows, settings, setup, f"proxy {number}"), strict=True
        ):
            score += error_norms(logits, shadow.labels, features if settings.selection == "grand" else None)
    return [score / settings.proxies for score in total]


def error_norms(logits: np.ndarray, labels: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """Return ``||softmax(z) - onehot(y)||``, times ``sqrt(1 + ||h||^2)`` if features h are given; float64 (n,).

    Args:
        logits: (n, class).
        labels: int64 (n,).
        features: (n, d), the last layer's input.
    """
    error = softmax(logits.astype(np.float64), axis=1)
    error[np.arange(len(error)), labels] -= 1
    norm: np.ndarray = np.linalg.norm(error, axis=1)
    return norm if features is None else norm * np.sqrt(1 + np.square(features.astype(np.float64)).sum(axis=1))


def _scoring_recipe(recipe: Recipe, epochs: int) -> Recipe:
    """The run's recipe, shorter, with a cosine schedule and without augmentation, as DeepCore scores."""
    augmentation = recipe.augmentation.model_copy(update={"flip": False, "shift": 0, "siamese": None})
    warmup = min(recipe.warmup_epochs, epochs / 2)  # a warm-up of all epochs would leave none to anneal
    changes = {"epochs": epochs, "warmup_epochs": warmup, "schedule": "cosine", "milestones": ()}
    return recipe.model_copy(update={**changes, "augmentation": augmentation})


def _train_proxies(
    shadows: Sequence[Shadow], settings: Settings, setup: Setup, purpose: str, observe: Observer | None = None
) -> Iterator[Trained]:
    """Yield a proxy network per shadow model, trained on that shadow model's data only."""
    recipe = _scoring_recipe(setup.recipe, settings.scoring_epochs)
    sets = [shadow.training_set() for shadow in shadows]
    return setup.train(sets, shadows, purpose=purpose, recipe=recipe, observe=observe)


def proxy_outputs(
    shadows: Sequence[Shadow], settings: Settings, setup: Setup, purpose: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (features (n, d), logits (n, class)) of each shadow model's samples in its own trained proxy."""
    from coalmine.training.inference import embed

    for shadow, trained in zip(shadows, _train_proxies(shadows, settings, setup, purpose), strict=True):
        yield embed(setup.model, trained.state, shadow.images, setup.normalisation, setup.classes, device=setup.device)
