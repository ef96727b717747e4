"""Augmentation against naive loops, and the protocol's views."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from coalmine.training.augment import View, apply_view, draw_plan, fixed_views, normalise, random_augment
from coalmine.training.recipe import Augmentation, Normalisation

CIFAR = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def photos(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def with_pillow(image: torch.Tensor, flip: bool, dy: int, dx: int, shift: int) -> torch.Tensor:
    """Flip, pad with black and crop one image ``(3, size, size)``, as torchvision does with Pillow images."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if flip:
        picture = ImageOps.mirror(picture)
    size = picture.size[0]
    left, top = shift + dx, shift + dy
    picture = ImageOps.expand(picture, shift, fill=0).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_random_augmentation_equals_pillow_image_by_image():
    images = photos(2, 30, 3, 12, 12)
    generator = torch.Generator().manual_seed(1)
    flip = torch.randint(0, 2, (2, 30), generator=generator)
    dy, dx = torch.randint(-4, 5, (2, 2, 30), generator=generator)
    augmented = random_augment(images, flip, dy, dx, 4)
    assert augmented.dtype == torch.uint8
    for model in range(2):
        for i in range(30):
            how = bool(flip[model, i]), int(dy[model, i]), int(dx[model, i]), 4
            assert torch.equal(augmented[model, i], with_pillow(images[model, i], *how))


def test_augmented_images_that_pass_on_gradients_are_the_same_and_each_pixel_gets_that_of_its_copy():
    images = photos(20, 3, 12, 10).double()
    generator = torch.Generator().manual_seed(1)
    flip, dy, dx = torch.randint(-3, 4, (3, 20), generator=generator)
    flip = flip > 0
    expected = random_augment(images, flip, dy, dx, 3)
    augmented = random_augment(images.requires_grad_(), flip, dy, dx, 3)
    assert torch.equal(augmented, expected)
    weight = photos(20, 3, 12, 10).double()
    (augmented * weight).sum().backward()
    for i in range(20):
        moved = apply_view(weight[i], View(False, -int(dy[i]), -int(dx[i])))
        assert torch.equal(images.grad[i], moved.flip(-1) if flip[i] else moved)


def test_views_equal_pillow_image_by_image():
    images = photos(5, 3, 12, 12)
    for view in fixed_views(flip=True, shift=4):
        expected = torch.stack([with_pillow(image, view.flip, view.dy, view.dx, 4) for image in images])
        assert torch.equal(apply_view(images, view), expected)


def test_a_random_augmentation_of_a_views_amounts_is_that_view():
    images = photos(5, 1, 8, 8)
    for view in fixed_views(flip=True, shift=3):
        flip, dy, dx = (torch.full((5,), int(amount)) for amount in (view.flip, view.dy, view.dx))
        assert torch.equal(random_augment(images, flip, dy, dx), apply_view(images, view))


def test_the_protocol_has_eighteen_views_in_its_order():
    shifts = [(0, 0), (0, -4), (0, 4), (-4, 0), (-4, -4), (-4, 4), (4, 0), (4, -4), (4, 4)]
    expected = [View(flip, dy, dx) for flip in (False, True) for dy, dx in shifts]
    assert fixed_views(flip=True, shift=4) == expected
    assert fixed_views(flip=False, shift=4) == expected[:9]
    assert fixed_views(flip=True, shift=0) == [View(), View(flip=True)]
    assert fixed_views(flip=False, shift=0) == [View()]


def test_a_positive_shift_moves_the_crop_down_and_right_and_never_wraps_around():
    image = photos(1, 1, 6, 6)
    moved = apply_view(image, View(dy=2, dx=1))
    assert torch.equal(moved[..., :4, :5], image[..., 2:, 1:])
    assert moved[..., 4:, :].max() == 0
    assert moved[..., :, 5:].max() == 0


def test_the_border_is_black_before_normalisation():
    image = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    x = normalise(apply_view(image, View(dy=4)), CIFAR)
    for channel in range(3):
        assert x[0, channel, -1, 0].item() == pytest.approx(-CIFAR.mean[channel] / CIFAR.std[channel])
        inner = (200 / 255 - CIFAR.mean[channel]) / CIFAR.std[channel]
        assert x[0, channel, 0, 0].item() == pytest.approx(inner, rel=1e-5)


def test_float_images_are_on_the_scale_from_zero_to_one():
    images = photos(4, 3, 8, 8)
    torch.testing.assert_close(normalise(images.float() / 255, CIFAR), normalise(images, CIFAR))


def test_normalisation_passes_gradients_even_if_first_used_for_inference():
    fresh = Normalisation(mean=(0.123,), std=(0.456,))
    with torch.inference_mode():
        normalise(torch.zeros(1, 1, 2, 2), fresh)
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    normalise(x, fresh).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 1, 2, 2), 1 / 0.456))


def test_a_plan_is_a_permutation_with_uniform_flips_and_shifts():
    n = 20_000
    plan = draw_plan(torch.Generator().manual_seed(3), n, Augmentation(flip=True, shift=4))
    assert plan.dtype == torch.int64
    assert torch.equal(plan[:, 0].sort().values, torch.arange(n))
    assert not torch.equal(plan[:, 0], torch.arange(n))
    assert plan[:, 1].float().mean().item() == pytest.approx(0.5, abs=0.02)
    for column in (2, 3):
        counts = torch.bincount(plan[:, column] + 4, minlength=9)
        assert counts.shape == (9,)
        assert counts.min() > n / 9 * 0.9
    assert abs(torch.corrcoef(plan[:, 2:].T.float())[0, 1]) < 0.03


def test_a_plan_without_augmentation_leaves_images_alone():
    plan = draw_plan(torch.Generator().manual_seed(3), 100, Augmentation(flip=False, shift=0))
    assert plan[:, 1:].abs().max() == 0
    images = photos(100, 1, 4, 4)
    assert torch.equal(random_augment(images, None, plan[:, 2], plan[:, 3]), images)
