"""What a network draws by its inputs' keys: what each gets is torch's own draw, whatever is beside it."""

import random

import numpy as np
import pytest
import torch
from attack_models import ExactNetwork, images
from torch import Tensor, nn
from torch.nn import functional

from robench.models import wrap_module
from robench.models.draws_by_row import seed_of
from robench.models.keyed_draws import drawn_by, draws_by_keys, own_sizes, with_rows_to_spare
from robench.seeding import own_stream

KEYS = [5, -7, 5, 11, 2**62]
CPU = torch.device("cpu")


def test_each_row_is_what_torch_draws_from_the_rows_key() -> None:
    with own_stream(0, CPU), drawn_by(KEYS, 3, CPU):
        uniform = torch.rand(5, 2, 3)
        noise = torch.randn_like(uniform)
        coins = torch.empty(5, 4).bernoulli_(0.3)
        kept = functional.dropout(torch.ones(5, 8), 0.5, training=True)
        picked = torch.multinomial(torch.ones(5, 6), 2)
    for row, key in enumerate(KEYS):
        seeds = [seed_of(key, turn) for turn in range(1, 6)]
        torch.manual_seed(seeds[0])
        assert torch.equal(uniform[row], torch.rand(1, 2, 3)[0])
        torch.manual_seed(seeds[1])
        assert torch.equal(noise[row], torch.randn(1, 2, 3)[0])
        torch.manual_seed(seeds[2])
        assert torch.equal(coins[row], torch.empty(1, 4).bernoulli_(0.3)[0])
        torch.manual_seed(seeds[3])
        assert torch.equal(kept[row], functional.dropout(torch.ones(1, 8), 0.5, training=True)[0])
        torch.manual_seed(seeds[4])
        assert torch.equal(picked[row], torch.multinomial(torch.ones(1, 6), 2)[0])


def test_what_is_for_all_rows_follows_the_seed_and_not_how_many_they_are() -> None:
    drawn = []
    for count, seed in ((5, 3), (2, 3), (5, 4)):
        with own_stream(0, CPU), drawn_by(KEYS[:count], seed, CPU):
            before = torch.rand(1)
            torch.rand(count)
            drawn.append([float(before), float(torch.rand(1)), np.random.rand(), random.random()])
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_generators_stand_where_they_stood_and_a_generator_of_its_own_is_left_alone() -> None:
    torch.manual_seed(1)
    before, own = torch.get_rng_state(), torch.Generator().manual_seed(2)
    with own_stream(0, CPU), drawn_by(KEYS, 0, CPU):
        torch.rand(5)
        mine = torch.rand(5, generator=own)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(mine, torch.rand(5, generator=torch.Generator().manual_seed(2)))


def test_gradients_go_through_the_same_draws() -> None:
    inputs = torch.ones(5, 8, requires_grad=True)
    with own_stream(0, CPU), drawn_by(KEYS, 0, CPU):
        kept = functional.dropout(inputs, 0.5, training=True)
    (gradient,) = torch.autograd.grad(kept.sum(), inputs)
    assert torch.equal(gradient, kept.detach())
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])


class Drawing(nn.Module):
    """A network that adds what it draws to its inputs."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.inner = ExactNetwork()
        self.draw = draw

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.inner(inputs + self.draw(inputs))
        return out


def by_numpy(inputs: Tensor) -> Tensor:
    return torch.from_numpy(np.random.rand(*inputs.shape)).float()


@pytest.mark.parametrize(
    ("draw", "keyed"),
    [
        (lambda x: 0.1 * torch.randn_like(x), True),
        (lambda x: 0.1 * torch.rand(len(x), 1, 1, 1), True),
        (lambda x: torch.rand(1), True),  # one number for all
        (lambda x: torch.rand(x.shape[1:]), True),  # one image for all
        (lambda x: random.random(), True),
        (lambda x: functional.dropout(x, 0.4, training=True), True),
        (by_numpy, False),
        (lambda x: 0.1 * torch.randn(x.shape[::-1]).permute(3, 2, 1, 0), False),
    ],
)
def test_whether_outputs_follow_keys_is_seen(draw, keyed: bool) -> None:
    model = wrap_module(Drawing(draw), num_classes=6, input={"channels": 1})
    assert draws_by_keys(model, images(8, seed=1)) == keyed


def test_a_model_that_raises_follows_no_keys() -> None:
    def refuse(inputs: Tensor) -> Tensor:
        raise ValueError("not today")

    model = wrap_module(Drawing(refuse), num_classes=6, input={"channels": 1})
    assert not draws_by_keys(model, images(8, seed=1))


def test_a_pass_has_as_many_rows_as_nothing_that_is_drawn_for_all() -> None:
    model = wrap_module(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 6)), num_classes=6, input={"channels": 1}
    )
    sizes = own_sizes(model, (1, 6, 6))
    assert sizes == {1, 6, 36}
    assert with_rows_to_spare(5, sizes, CPU) is None
    rows = with_rows_to_spare(1, sizes, CPU)
    assert rows is not None
    assert rows.tolist() == [0, 0]
