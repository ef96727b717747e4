"""Numbers that the papers print, each with its setting and source. What no paper states is absent, never guessed."""

from __future__ import annotations

from dataclasses import dataclass

S1 = 'Zhao & Zhang, "Does Training with Synthetic Data Truly Protect Privacy?", ICLR 2025'
PREDECESSOR = 'Aerni, Zhang & Tramèr, "Evaluations of Machine Learning Privacy Defenses are Misleading", CCS 2024'

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
