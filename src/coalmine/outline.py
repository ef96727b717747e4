"""What is known about a run before its data are read: what a method's ``objection`` may judge its settings by."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Outline(NamedTuple):
    """The outline of a run; None stands for what only the data will tell.

    Attributes:
        population: private samples of a shadow model, on average over the audit design.
        classes: number of classes.
        channels: channels of an image, as the normalisation has them.
        experts: the sound entries of the configuration's section ``experts`` by name, each a
            ``coalmine.distillation.settings.Experts``. (Not typed as such, so that the code of methods without experts
            does not depend on what experts are.)
        image_size: (height, width) of an image in pixels.
        models: the architecture of every sound method entry by name, each one of ``coalmine.models.settings``: that of
            a teacher, for methods that distil one.
        settings: the settings of every sound method entry by name, for methods that draw from another's generators.
        pretrained: the sound entries of the configuration's section ``pretrained`` by name, each a
            ``coalmine.diffusion.settings.Pretraining``.
    """

    population: float | None
    classes: int | None
    channels: int
    experts: Mapping[str, Any]
    image_size: tuple[int, int] | None = None
    models: Mapping[str, Any] = MappingProxyType({})
    settings: Mapping[str, Any] = MappingProxyType({})
    pretrained: Mapping[str, Any] = MappingProxyType({})
