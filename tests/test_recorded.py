"""What is recorded on a GPU is what is computed without: the same numbers, for new numbers in the same shapes."""

import pytest
import torch

from ddanalysis import networks, unroll
from ddanalysis.architectures import build
from ddanalysis.compute import waits_for_launches
from ddanalysis.optimisers import Optimiser
from ddanalysis.recorded import recorded

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def unrolled(device: str, name: str, shape: tuple[int, int, int], count: int, seed: int) -> list[torch.Tensor]:
    """Losses and every derivative of some steps of training, of random images in double precision."""
    a, g, there = build(name, shape, 10), torch.Generator().manual_seed(seed), (device, torch.float64)
    x = torch.randn(3, 20, *shape, generator=g).to(*there).requires_grad_()
    y = torch.randn(3, 20, 10, generator=g).to(*there).requires_grad_()
    real = torch.randn(30, *shape, generator=g).to(*there), (torch.arange(30) % 10).to(device)
    start = unroll.begin(networks.create(a, range(seed, seed + count)).to(device).to(torch.float64), Optimiser())
    rates = torch.full((3,), 0.05, dtype=torch.float64, device=device)

    def end(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return unroll.loss_and_gradient(a, weights, *real)

    losses, found = unroll.through(a, Optimiser(), start, lambda t: (x[t], y[t]), rates, [x, y], end, 3)
    return [losses, *found.inputs, found.weights]


@gpu
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(("name", "shape"), [("LeNet", (1, 28, 28)), ("AlexCifarNet", (3, 32, 32))])
def test_recorded_steps_are_the_steps(
    name: str, shape: tuple[int, int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [unrolled("cuda", name, shape, count, seed) for seed in (0, 1)]  # the second by the recordings of the first
    monkeypatch.setattr(unroll, "waits_for_launches", lambda *_: False)
    plain = [unrolled("cuda", name, shape, count, seed) for seed in (0, 1)]
    assert not torch.equal(own[0][0], own[1][0])
    for mine, theirs in zip(own, plain, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-10 * float(b.abs().max()))


@gpu
def test_a_result_outlives_the_next_call() -> None:
    first = recorded(_squares, torch.arange(3.0, device="cuda"), 2)[0]
    second = recorded(_squares, torch.arange(3.0, 6.0, device="cuda"), 2)[0]
    assert first.tolist() == [0.0, 2.0, 8.0] and second.tolist() == [18.0, 32.0, 50.0]
    assert recorded(_squares, torch.arange(3.0, device="cuda"), 3)[0].tolist() == [0.0, 3.0, 12.0]


def _squares(x: torch.Tensor, times: int) -> tuple[torch.Tensor]:
    return (times * x**2,)


def test_only_small_work_on_a_gpu_is_recorded() -> None:
    a = build("LeNet", (1, 28, 28), 10)
    assert waits_for_launches(a, 4, 100, torch.device("cuda"))
    assert not waits_for_launches(a, 100, 1024, torch.device("cuda"))
    assert not waits_for_launches(a, 1, 1, torch.device("cpu"))


def test_small_steps_go_the_recorded_way_with_arguments_it_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = unrolled("cpu", "LeNet", (1, 28, 28), 2, 0), []

    def followed(function, *arguments):
        calls.append((function, tuple(type(a) if isinstance(a, torch.Tensor) else a for a in arguments)))
        hash(calls[-1])
        return function(*arguments)

    monkeypatch.setattr(unroll, "waits_for_launches", lambda *_: True)
    monkeypatch.setattr(unroll, "recorded", followed)
    for a, b in zip(unrolled("cpu", "LeNet", (1, 28, 28), 2, 0), plain, strict=True):
        assert torch.equal(a, b)
    assert len(set(calls)) == 3  # a step there, the loss of the end, a step back
