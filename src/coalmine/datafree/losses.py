"""What data-free methods ask of synthetic images, each as in its paper. Small is good.

Shapes: images ``x`` (image, channel, height, width) as networks see them, logits (image, class), labels int64 (image,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from coalmine.datafree.settings import Divergence
from coalmine.datafree.statistics import Moments


def one_hot(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the teacher's answer: the image is clearly of its class (DAFL)."""
    return F.cross_entropy(logits, labels)


def activation(features: torch.Tensor) -> torch.Tensor:
    """Negative mean size of the teacher's features: real images excite them (DAFL)."""
    return -features.abs().mean()


def balance(logits: torch.Tensor) -> torch.Tensor:
    """Negative entropy of the batch's mean answer: all classes appear equally often (DAFL)."""
    # In logarithms: where a class's mean underflows to 0, the gradient of ``mean log mean`` would be nan.
    log_mean = logits.log_softmax(dim=1).logsumexp(dim=0) - math.log(len(logits))
    return (log_mean.exp() * log_mean).sum()


def batch_norm(moments: Sequence[Moments], running: Sequence[Moments]) -> torch.Tensor:
    """Distance of each layer's batch statistics from those of the private data (DeepInversion).

    The sum over the teacher's batch norm layers of ``||mean - running mean|| + ||variance - running variance||``,
    norms not squared, as in the public code.
    """
    distances = [
        torch.linalg.vector_norm(own.mean - target.mean) + torch.linalg.vector_norm(own.variance - target.variance)
        for own, target in zip(moments, running, strict=True)
    ]
    return torch.stack(distances).sum()


def adversarial(teacher: torch.Tensor, student: torch.Tensor, divergence: Divergence, *, masked: bool) -> torch.Tensor:
    """Negative mean divergence: images on which student and teacher disagree.

    Args:
        teacher: its logits.
        student: its logits.
        divergence: the measure of disagreement.
        masked: count only images to which both give the same class, so that the class stays clear (CMI).
    """
    each = DIVERGENCES[divergence](teacher, student)
    if masked:
        each = each * (teacher.argmax(dim=1) == student.argmax(dim=1))
    return -each.mean()


def contrast(local: torch.Tensor, whole: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE: a view of an image is nearer to the whole of it than to any other image (CMI).

    Args:
        local: (image, dimension), of unit length.
        whole: (image + other, dimension), of unit length; the first ones belong to ``local``, in order.
        temperature: of the softmax.
    """
    similarity = local @ whole.T / temperature
    return F.cross_entropy(similarity, torch.arange(len(local), device=local.device))


def total_variation(x: torch.Tensor) -> torch.Tensor:
    """Sum of the norms of the batch's differences between neighbours: across, down and on both diagonals.

    As in DeepInversion's public code.
    """
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(difference) for difference in differences]).sum()


def kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` of each image (Hinton et al., 2015)."""
    target, answer = (F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(answer, target, reduction="none", log_target=True).sum(dim=1)


def l1(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the logits of each image (DFAD)."""
    return (teacher - student).abs().mean(dim=1)


def js(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 3.0) -> torch.Tensor:
    """Jensen-Shannon divergence of the softened answers to each image (Adaptive DeepInversion).

    At temperature 3, as in its public code, where both KL stand the other way round.
    """
    logs = [F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student)]
    middle = torch.logaddexp(*logs) - math.log(2)
    halves = [F.kl_div(middle, log, reduction="none", log_target=True).sum(dim=1) for log in logs]
    return (halves[0] + halves[1]) / 2


DIVERGENCES: dict[Divergence, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"kl": kl, "l1": l1, "js": js}
"""How far the student's answer to each image is from the teacher's, (image,), 0 where they agree."""
