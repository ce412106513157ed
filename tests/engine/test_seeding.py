import torch

from journey.engine.seeding import entropy, generator, numpy_generator


def test_numbers_depend_on_seed_purpose_and_index_only():
    first = torch.randn(5, generator=generator(0, "noise", 3, 1))
    torch.manual_seed(123)
    torch.randn(17)
    assert torch.equal(first, torch.randn(5, generator=generator(0, "noise", 3, 1)))
    others = [
        generator(1, "noise", 3, 1),
        generator(0, "other", 3, 1),
        generator(0, "noise", 1, 3),
        generator(0, "noise", 31),
    ]
    assert not any(torch.equal(first, torch.randn(5, generator=g)) for g in others)


def test_streams_never_move():
    assert entropy(0, "noise", 3, 1) == 4322054722856484197
    assert numpy_generator(7, "subset", 2).integers(10**9) == 604984117
