"""The images that a data-free method remembers, as bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch


class Memory:
    """The last ``capacity`` images, in the order in which they came.

    Args:
        capacity: images held at most; then the oldest leave.
        shape: of an image, (channel, height, width).
        device: where they are kept.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], device: torch.device) -> None:
        self.capacity = capacity
        self._images = torch.empty(0, *shape, dtype=torch.uint8, device=device)
        self._added = 0

    def __len__(self) -> int:
        """Return the number of images held."""
        return min(self._added, self.capacity)

    @torch.no_grad()
    def add(self, images: torch.Tensor) -> None:
        """Take in images from 0 to 1, (image, channel, height, width), rounded to bytes."""
        self._put((images * 255).round().clamp(0, 255).byte())

    def _put(self, images: torch.Tensor) -> None:
        """Write at the next places, those of the oldest images once all are taken."""
        self._added += len(images)
        self._reserve()
        images = images[-self.capacity :]
        first = self._added - len(images)
        places = (first + torch.arange(len(images), device=images.device)) % self.capacity
        self._images[places] = images

    def _reserve(self) -> None:
        """Make room by doubling, so that memory grows with what is remembered."""
        room = len(self._images)
        if len(self) > room:
            grown = self._images.new_empty(min(self.capacity, max(len(self), 2 * room)), *self._images.shape[1:])
            grown[:room] = self._images
            self._images = grown

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Return images by age: 0 is the oldest; uint8 (image, channel, height, width)."""
        first = self._added - len(self)
        return self._images[(first + index.to(self._images.device)) % self.capacity]

    def all(self) -> torch.Tensor:
        """Return all images, the oldest first."""
        return self[torch.arange(len(self))]

    def restore(self, images: torch.Tensor) -> None:
        """Hold exactly what ``all`` returned."""
        self._added = 0
        self._put(images.to(self._images.device))

    def batches(self, steps: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield so many batches of ``size`` indices, or all if there are fewer, in shuffled passes without a gap."""
        size = min(size, len(self))
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.cat([order, torch.randperm(len(self), generator=generator)])
            yield order[:size]
            order = order[size:]
