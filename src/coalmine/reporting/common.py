"""Settings that tables and figures share (light: read while the workflow is planned, before any job starts)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coalmine.settings import Settings

Methods = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
"""Names of methods in the order of rows or curves; a list in YAML or JSON is accepted."""

Initialisation = Literal["private", "public", "noise"]

WORST_CASE = "mislabelled"
AVERAGE_CASE = "clean"


class ReportSettings(Settings):
    """What every table and figure may be told; the workflow fills in what it knows of the methods."""

    title: str = Field(description="heading of the page or figure")
    methods: Methods = Field(description="methods to show, in this order, named as in the configuration")
    labels: dict[str, str] = Field(default={}, description="method -> name for people (default: the method's name)")
    sets: dict[str, str] = Field(
        default={},
        description="method -> the method whose synthetic sets its models learned from: itself, or for a row that "
        "reuses another's sets that one (filled in by the workflow)",
    )
    teachers: dict[str, str] = Field(
        default={}, description="method -> the method whose models taught its own (filled in by the workflow)"
    )
    visual: bool = Field(
        default=True, description="whether synthetic images were compared with private ones (filled in by the workflow)"
    )
    experts: dict[str, str] = Field(
        default={}, description="method -> the experts that it matches (filled in by the workflow)"
    )
    generators: dict[str, str] = Field(
        default={},
        description="method -> the method whose generative models its synthetic sets are drawn from (filled in by the "
        "workflow)",
    )
    initialisation: dict[str, Initialisation] = Field(
        default={}, description="method -> what its synthetic images start from (filled in by the workflow)"
    )

    def label(self, method: str) -> str:
        """Return the name for people of a method."""
        return self.labels.get(method, method)

    @property
    def needed(self) -> tuple[str, ...]:
        """Every method whose files must exist, without repetition."""
        return self.methods


class AverageCaseSettings(ReportSettings):
    """Settings of what compares the worst-case audit (mislabelled canaries) with the average case (clean ones)."""

    average: dict[str, str] = Field(
        default={},
        description="method -> the method entry whose clean group is its average case (default: the method itself)",
    )

    @model_validator(mode="after")
    def _average_cases_belong_to_methods(self) -> Self:
        if unknown := sorted(self.average.keys() - set(self.methods)):
            raise ValueError(f"average names {', '.join(unknown)}, not listed in methods ({', '.join(self.methods)})")
        return self

    def average_of(self, method: str) -> str:
        """Return the method entry whose clean group is the average case of ``method``."""
        return self.average.get(method, method)

    @property
    def needed(self) -> tuple[str, ...]:
        """Every method whose files must exist: those shown and those their average cases lie in."""
        return tuple(dict.fromkeys([*self.methods, *map(self.average_of, self.methods)]))
