"""Random streams are keyed by name."""

import torch

from coalmine.seeds import numpy_generator, seed_sequence, torch_generator


def test_a_stream_depends_on_seed_and_every_name_only() -> None:
    def draw(*key):
        return numpy_generator(*key).integers(2**63)

    base = draw(0, "random", 7, "order")
    assert draw(0, "random", 7, "order") == base
    others = [
        draw(1, "random", 7, "order"),
        draw(0, "herding", 7, "order"),
        draw(0, "random", 8, "order"),
        draw(0, "random", 7, "weights"),
        draw(0, "random", "7", "order"),
        draw(0, "random", 7),
        draw(0, "random7", "order"),
    ]
    assert base not in others
    assert len(set(others)) == len(others)


def test_streams_do_not_change_between_versions() -> None:
    # Pinned: a change here would change every number of every run.
    assert seed_sequence(0, "undefended", 3, "training").generate_state(2).tolist() == [75315109, 289225379]


def test_torch_streams_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = torch.rand(4, generator=torch_generator(0, "a"))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, torch.rand(4, generator=torch_generator(0, "a")))
    assert not torch.equal(first, torch.rand(4, generator=torch_generator(0, "b")))
