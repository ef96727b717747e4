"""The privacy budget of a differentially private method: its noise, its batches, and the guarantee that they give.

Imports no torch; accounting is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from coalmine.settings import Settings

if TYPE_CHECKING:
    from coalmine.accounting import Guarantee


class Budget(Settings):
    """How DP-SGD is bounded; "the predecessor" are its high-utility settings for CIFAR-10."""

    epsilon: PositiveFloat | None = Field(
        default=None, description="Target: the noise is the least that meets it. Else null, with noise_multiplier."
    )
    noise_multiplier: PositiveFloat | None = Field(
        default=None, description="Standard deviation of the noise in units of clip. Else null, with epsilon."
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="Of the guarantee; below 1 / (private samples).")
    accountant: Literal["pld", "rdp"] = Field(
        default="pld", description="pld: privacy-loss distribution, tight. rdp: Renyi divergence, as in the papers."
    )
    steps: PositiveInt = Field(description="Updates; De et al.: 875 (epsilon 1) to 2,500 (epsilon 8).")
    batch_size: PositiveInt = Field(description="Expected samples a step; De et al.: 4,096.")
    clip: PositiveFloat = Field(default=1.0, description="Largest norm of a sample's gradient; both: 1.")
    views: PositiveInt = Field(
        default=1, description="K, copies of a sample in each step; the predecessor: 8, De et al.: 16."
    )
    micro_batch: PositiveInt = Field(
        default=128,
        description="Samples whose gradients are held in memory at once; changes rounding only. Well above batch_size "
        "where memory allows: each part has a fixed cost.",
    )

    @model_validator(mode="after")
    def _has_one_source_of_noise(self) -> Budget:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set either epsilon (the noise is chosen to meet it) or noise_multiplier, not both")
        return self


def objection(budget: Budget, population: float | None) -> tuple[str, str] | None:
    """Return the field and the reason why a budget does not go with the private data, or None.

    Args:
        budget: the budget.
        population: private samples of a shadow model on average, None if not known yet.
    """
    if population is None:
        return None
    if budget.batch_size > population:
        return "batch_size", f"is {budget.batch_size}, but a shadow model has only {population:g} samples on average."
    if budget.delta >= 1 / population:
        return "delta", f"is {budget.delta:g}; a guarantee that means something needs less than 1 / {population:g}."
    return None


def guarantee(budget: Budget, population: float) -> Guarantee:
    """Return the guarantee, with the noise that it needs if ``epsilon`` is given.

    Args:
        budget: the budget.
        population: public number of samples of which a step draws ``batch_size`` on average.
    """
    from coalmine.accounting import account, calibrate
    from coalmine.mechanism import Mechanism

    rate = budget.batch_size / population
    if budget.epsilon is not None:
        return calibrate(budget.epsilon, budget.delta, rate, budget.steps, budget.accountant)
    assert budget.noise_multiplier is not None
    mechanism = Mechanism(budget.noise_multiplier, rate, budget.steps)
    return account(mechanism, budget.delta, budget.accountant)
