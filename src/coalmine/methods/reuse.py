"""A second student: other models, trained on the synthetic sets that another method of the configuration makes.

The sets are not made again. With another ``model`` this tells whether what a set gives away, and what it is good for,
depends on the architecture that learns from it: a distilled set is made with one network and published for any. The
first student of a data-free method learned while the images were made; here a second one learns from those that were
kept, with their soft labels, by the ordinary training recipe.
"""

from __future__ import annotations

from pydantic import Field

from coalmine import settings


class Settings(settings.Settings):
    """Whose sets."""

    set: str = Field(description="The method whose synthetic sets are trained on, an entry that makes some itself.")
