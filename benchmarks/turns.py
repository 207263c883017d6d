"""Contenders take turns on one machine, and what may be said of two of them."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from benchmarks.rows import spread

Measured = TypeVar("Measured")


def in_turns(contenders: Mapping[str, Callable[[], Measured]], *, rounds: int, seed: int) -> dict[str, list[Measured]]:
    """Measure everybody in every round, in a new order each round, so that a machine that slows down slows all.

    Args:
        contenders: What a turn of each is.
        rounds: How many turns each gets.
        seed: Of the orders.

    Returns:
        What each one's turns returned, in the order of the rounds.
    """
    measured: dict[str, list[Measured]] = {name: [] for name in contenders}
    order, names = random.Random(seed), list(contenders)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            measured[name].append(contenders[name]())
    return measured


def ratios(some: Sequence[float], others: Sequence[float]) -> list[float] | None:
    """How many times as much one has as another, in each round; None where their ranges overlap."""
    if max(min(some), min(others)) <= min(max(some), max(others)):
        return None
    return [one / other for one, other in zip(some, others, strict=True)]


def times_as_much(some: Sequence[float], others: Sequence[float]) -> str:
    """The ratios, for people."""
    of_rounds = ratios(some, others)
    return "ranges overlap" if of_rounds is None else figure(of_rounds, ".3g")


def figure(values: Sequence[float], digits: str) -> str:
    """Median and range, for people."""
    of_all = spread(values)
    if of_all.count == 1:
        return f"{of_all.median:{digits}} (1 round)"
    return f"{of_all.median:{digits}} ({of_all.low:{digits}} to {of_all.high:{digits}})"


def wait_for(device: str) -> None:
    """Until the device, "cpu" or "cuda", has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
