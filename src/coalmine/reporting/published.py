"""Numbers that the papers print, each with its setting and source. What no paper states is absent, never guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass

S1 = 'Zhao & Zhang, "Does Training with Synthetic Data Truly Protect Privacy?", ICLR 2025'
PREDECESSOR = 'Aerni, Zhang & Tramèr, "Evaluations of Machine Learning Privacy Defenses are Misleading", CCS 2024'

S2 = 'Ghalebikesabi et al., "Differentially Private Diffusion Models Generate Useful Synthetic Images", 2023'

_S1_SETTING = "CIFAR-10, ResNet-18, 500 canaries, 32 shadow models"
_PREDECESSOR_SETTING = "CIFAR-10, WRN-16-4, 500 canaries, 64 shadow models, maximum over variants"


@dataclass(frozen=True)
class Published:
    """What a paper prints about one method.

    Attributes:
        tpr: TPR at 0.1 % FPR, a fraction.
        source: the paper.
        setting: data, models and attack behind the number, in a line.
        accuracy: test accuracy, a fraction.
        selected: share of the canaries that the method takes into its set.
        comparable: False where the number answers another question than ours (``setting`` says which), so that a
            difference would mislead.
    """

    tpr: float
    source: str
    setting: str
    accuracy: float | None = None
    selected: float | None = None
    comparable: bool = True


PUBLISHED: dict[str, Published] = {
    "random": Published(0.3870, S1, _S1_SETTING, selected=0.40),
    "forgetting": Published(0.7294, S1, _S1_SETTING, selected=0.74),
    "undefended": Published(1.0, PREDECESSOR, _PREDECESSOR_SETTING, accuracy=0.941),
    "dfkd": Published(0.722, PREDECESSOR, _PREDECESSOR_SETTING, accuracy=0.918),
    "dpsgd-medium": Published(0.027, PREDECESSOR, _PREDECESSOR_SETTING, accuracy=0.883),
    "dpsgd-high": Published(
        0.095,
        PREDECESSOR,
        f"{_PREDECESSOR_SETTING} and canary kinds: out-of-distribution canaries, not mislabelled ones, which are at "
        "most as high",
        accuracy=0.911,
        comparable=False,
    ),
    "dpsgd-veryhigh": Published(0.632, PREDECESSOR, _PREDECESSOR_SETTING, accuracy=0.918),
}


@dataclass(frozen=True)
class PublishedUtility:
    """What a paper prints about private synthetic images of a data set; ``None`` where it is not known to us.

    Attributes:
        source: the paper.
        setting: data, model and budget behind the numbers, in a line.
        accuracy: test accuracy of a classifier trained on synthetic images, a fraction.
        real_accuracy: test accuracy of one trained on the real images, a fraction.
        fid: Frechet inception distance.
    """

    source: str
    setting: str
    accuracy: float | None = None
    real_accuracy: float | None = None
    fid: float | None = None


_S2_SETTING = (
    "diffusion model of more than 80 million weights, pre-trained on ImageNet, fine-tuned privately with ε = 10"
)

PUBLISHED_UTILITY: dict[tuple[str, float], PublishedUtility] = {
    ("cifar10", 10.0): PublishedUtility(S2, f"CIFAR-10, {_S2_SETTING}", accuracy=0.880, fid=9.8),
    ("camelyon17", 10.0): PublishedUtility(S2, f"Camelyon17, {_S2_SETTING}", accuracy=0.911, real_accuracy=0.965),
}
"""By data set (letters and digits of its name) and epsilon."""


def published_utility(data: str, epsilon: float | None) -> PublishedUtility | None:
    """Return what a paper prints for a data set and a claimed epsilon, within 1 % of it; None if nothing is known.

    Args:
        data: name of the data set for people, such as ``CIFAR-10``.
        epsilon: claimed; None without a guarantee.
    """
    name = "".join(filter(str.isalnum, data.lower()))
    return next(
        (
            paper
            for (known, budget), paper in PUBLISHED_UTILITY.items()
            if name == known and epsilon is not None and math.isclose(epsilon, budget, rel_tol=0.01)
        ),
        None,
    )
