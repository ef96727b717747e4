"""What a differentially private method does to its data, as far as its guarantee depends on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from coalmine.errors import CoalmineError


@dataclass(frozen=True)
class Mechanism:
    """The Poisson-subsampled Gaussian mechanism, composed ``steps`` times.

    Each step draws every example with probability ``sampling_rate``, independently, adds up what the drawn ones
    contribute, each clipped to a norm, and publishes the sum plus Gaussian noise. Neighbouring data sets differ by one
    example that is there or not.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm, above 0.
        sampling_rate: probability of each example to take part in a step, in (0, 1].
        steps: number of steps, at least 1.

    Raises:
        CoalmineError: if one of them is outside its range.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse what is no such mechanism."""
        if not 0 < self.noise_multiplier < math.inf:
            raise CoalmineError(
                f"noise_multiplier is {self.noise_multiplier}: give a finite number above 0, the noise over the "
                "clipping norm (without noise there is no guarantee to account for)"
            )
        if not 0 < self.sampling_rate <= 1:
            raise CoalmineError(
                f"sampling_rate is {self.sampling_rate}: give a probability above 0 and up to 1, the expected batch "
                "over the number of examples"
            )
        if not isinstance(self.steps, int) or self.steps < 1:
            raise CoalmineError(f"steps is {self.steps}: give a whole number, at least 1")
