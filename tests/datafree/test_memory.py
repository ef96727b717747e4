"""The memory of data-free methods: order, size, and what is drawn from it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from coalmine.datafree.memory import Memory


def numbered(*values: int) -> torch.Tensor:
    """Images of 1x2x2 pixels whose bytes are these numbers."""
    return (torch.tensor(values, dtype=torch.float32) / 255).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def held(memory: Memory) -> list[int]:
    return memory.all()[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 5, 2], [3, 9], [12], [7, 1, 4], [2, 2, 2, 2, 2, 2]])
@pytest.mark.parametrize("capacity", [1, 4, 7, 50])
def test_the_memory_holds_the_last_images_in_their_order(sizes, capacity) -> None:
    memory, naive, value = Memory(capacity, (1, 2, 2), torch.device("cpu")), [], 0
    for size in sizes:
        values = [*range(value, value + size)]
        memory.add(numbered(*values))
        value, naive = value + size, (naive + values)[-capacity:]
        assert held(memory) == naive
        assert len(memory) == len(naive)
    assert held(memory) == naive


def test_images_are_rounded_to_the_nearest_byte_and_kept_as_copies() -> None:
    memory = Memory(4, (1, 2, 2), torch.device("cpu"))
    images = torch.tensor([0.4, 0.6, -3.0, 300.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2) / 255
    images = images.clone()
    memory.add(images)
    images.zero_()
    assert held(memory) == [0, 1, 0, 255]
    assert memory.all().dtype == torch.uint8


def test_index_counts_from_the_oldest_image() -> None:
    memory = Memory(3, (1, 2, 2), torch.device("cpu"))
    memory.add(numbered(1, 2, 3, 4, 5))
    assert memory[torch.tensor([2, 0])][:, 0, 0, 0].tolist() == [5, 3]


def test_a_restored_memory_goes_on_like_the_one_it_was_saved_from() -> None:
    memory = Memory(5, (1, 2, 2), torch.device("cpu"))
    memory.add(numbered(1, 2, 3, 4, 5, 6, 7))
    again = Memory(5, (1, 2, 2), torch.device("cpu"))
    again.add(numbered(50, 51, 52))
    again.restore(memory.all()[:1])
    assert held(again) == [3], "what was held before is gone"
    again.restore(memory.all())
    for each in (memory, again):
        each.add(numbered(8, 9))
    assert held(again) == held(memory) == [5, 6, 7, 8, 9]


def test_batches_pass_through_the_whole_memory_in_new_orders() -> None:
    memory = Memory(10, (1, 2, 2), torch.device("cpu"))
    memory.add(numbered(*range(10)))
    batches = list(memory.batches(15, 4, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4] * 15
    drawn = torch.cat(batches).tolist()
    passes = [drawn[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(one) == [*range(10)] for one in passes)
    assert len({tuple(one) for one in passes}) == 6
    assert Counter(drawn) == Counter(dict.fromkeys(range(10), 6))


def test_batches_are_all_there_is_if_the_memory_is_smaller() -> None:
    memory = Memory(10, (1, 2, 2), torch.device("cpu"))
    memory.add(numbered(1, 2, 3))
    batches = list(memory.batches(2, 8, torch.Generator().manual_seed(0)))
    assert [sorted(batch.tolist()) for batch in batches] == [[0, 1, 2]] * 2
