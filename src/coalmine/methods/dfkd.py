"""Data-free knowledge distillation: a student that never saw private data learns from images that its teacher dreams.

The teacher is the audited model of another method (``teacher``, the undefended one) for the same shadow model: its
weights are all that is given of the private data. Eight methods are one loop and a table of loss weights
(``coalmine.datafree.settings.ALGORITHMS``):

    for every epoch, for every round (``coalmine.datafree.loop``):
        synthesise: make a batch of images that the teacher is sure of, that match the statistics in its batch norm
            layers, that the student gets wrong, ... (``coalmine.datafree.objective``, with the method's weights), by
            moving a generator, its input, or pixels (``coalmine.datafree.sources``)
        remember the images
        distil: the student learns the teacher's answers to remembered images, or to fresh ones of the generator

DAFL, DFAD, ZSKT and DFQ train one generator against the student; DeepInversion (in its adaptive form, where the student
that is being taught is the one that images must challenge), CMI and Fast-Datafree fill a memory. ``reduced`` is what
the audit protocol's predecessor evaluated: Fast-Datafree's loop with nothing but the batch norm statistics.

The student is the one of the last step. What is published beside it, as ``synthetic``, is a random sample of the
memory with the teacher's probabilities for each image.

Private information enters through the teacher's weights and statistics, and leaves through its answers: a teacher that
has memorised a canary's wrong label answers differently around it, and teaches its student to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from coalmine.costs.work import INPUT_GRADIENT, Counter, ImageGenerator, Work
from coalmine.datafree.settings import DataFree
from coalmine.shadows import Distilled, Setup, Teacher

if TYPE_CHECKING:
    from coalmine.models.settings import ModelSettings
    from coalmine.outline import Outline
    from coalmine.training.recipe import Recipe


class Settings(DataFree):
    """Hyper-parameters of a data-free method; those of each are in ``coalmine.datafree.settings.ALGORITHMS``."""


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    teacher = outline.models.get(settings.teacher)
    needs = [name for name in ("batch_norm", "contrastive") if getattr(settings, name)]
    if teacher is not None and needs and getattr(teacher, "norm", None) != "batch":
        return "teacher", (
            f"is {settings.teacher}, a {teacher.name} without batch norm, whose statistics the loss {needs[0]} needs; "
            f"give {settings.teacher} a model with norm: batch, or take dafl, dfad or zskt."
        )
    size = outline.image_size[0] if outline.image_size else None
    if settings.source != "pixels" and size is not None and size % 4:
        return "source", f"is {settings.source}, whose images have sides that 4 divides, not {size}; take pixels."
    made = min(settings.memory, settings.images_made(recipe.epochs))
    if settings.images > made:
        return "images", f"is {settings.images}, but only {made} are remembered; lower it, or raise memory or epochs."
    return None


def distil(teachers: Sequence[Teacher], settings: Settings, setup: Setup) -> Iterator[Distilled]:
    """Yield a student and a sample of its images for each teacher, in order."""
    from coalmine.datafree.loop import Loop

    for teacher in teachers:
        yield Loop(teacher, settings, setup).run()


def work(settings: Settings, counter: Counter) -> tuple[Work, Work]:
    """Return what one shadow model takes: its images, and the student that learns from them.

    A step of synthesis goes forward and back through the generator, the teacher and the student, if that is asked; one
    of distillation trains the student on answers of the teacher.
    """
    batch, teacher, student = settings.batch_size, counter.teacher, counter.model
    generator = ImageGenerator(settings.latent, settings.width)
    taught = counter.recipe.epochs * settings.rounds
    rounds = taught + settings.warmup * settings.rounds

    def attempts(count: float) -> float:
        return count * settings.generator_steps

    # The contrastive loss looks at a second view of every image.
    views = 2 if settings.contrastive else 1
    made = counter.steps(teacher, attempts(rounds), batch * views, passes=INPUT_GRADIENT)
    if settings.source != "pixels":
        made += counter.steps(generator, attempts(rounds), batch)
    if settings.adversarial:
        made += counter.steps(student, attempts(taught), batch, passes=INPUT_GRADIENT)
    learned_from = min(counter.recipe.batch_size, settings.memory) if settings.learns_from == "memory" else batch
    steps = _student_steps(settings, learned_from, taught)
    learned = counter.steps(student, steps, learned_from) + counter.looks(teacher, learned_from, at_once=batch) * steps
    if settings.learns_from == "fresh":
        learned += counter.looks(generator, batch, at_once=batch) * steps
    return made + counter.image_set(settings.images, soft=True), learned


def _student_steps(settings: Settings, batch: int, rounds: int) -> float:
    """Return the student's steps in so many rounds; passes over the memory grow with it until it is full."""
    if settings.distillation_steps is not None:
        return settings.distillation_steps * rounds
    assert settings.passes is not None
    before = settings.warmup * settings.rounds
    remembered = (min(settings.memory, (before + done) * settings.batch_size) for done in range(1, rounds + 1))
    return sum(settings.passes * images / batch for images in remembered)
