"""The sums over all pairs, tile by tile: those over one matrix of all logits, at every shape of rows and tiles."""

import pytest
import torch
from torch import Tensor

from contrastive.losses import torch_tiles
from tests.every_loss import random

SHAPES = [(1, 1, 1), (1, 13, 3), (13, 1, 2), (5, 10, 4), (10, 5, 1), (11, 17, 7), (23, 4, 5)]


class Pairs:
    """Rows and columns, which of them belong to the same image, and all their logits."""

    def __init__(self, num_rows: int, num_columns: int, width: int, ids: str) -> None:
        self.x, self.y = 3 * random(num_rows, width), random(num_columns, width, seed=1)
        self.ids: tuple[Tensor | None, Tensor | None] = None, None
        self.logits = self.x @ self.y.T
        if ids != "none":
            # "few": some rows meet one column; "all": the first row has no column left
            x_ids, y_ids = 3 * torch.arange(num_rows), torch.arange(num_columns)
            if ids == "all":
                x_ids, y_ids = x_ids % 2, 0 * y_ids
            self.ids = x_ids, y_ids
            self.logits = self.logits.masked_fill(x_ids[:, None] == y_ids, -torch.inf)
        self.of_rows = self.logits.logsumexp(1), random(num_rows, seed=2)
        self.of_columns = self.logits.logsumexp(0), random(num_columns, seed=3)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    shape: tuple[int, int, int] = request.param
    return shape


@pytest.fixture(params=["none", "few", "all"])
def pairs(shape: tuple[int, int, int], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pairs:
    monkeypatch.setattr(torch_tiles, "TILE", 5)
    return Pairs(*shape, request.param)


def weights(logits: Tensor, log_sum_exp: Tensor, weight: Tensor) -> Tensor:
    return (logits - log_sum_exp).exp().nan_to_num(nan=0) * weight  # NaN: -inf - -inf, where all are left out


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


def test_the_log_sum_exp_is_that_of_all_logits(pairs: Pairs) -> None:
    assert_equal(torch_tiles.log_sum_exp(pairs.x, pairs.y, *pairs.ids), pairs.of_rows[0])


def test_the_softmaxs_mean_is_that_over_all_columns(pairs: Pairs) -> None:
    log_sum_exp, mean = torch_tiles.attend(pairs.x, pairs.y, *pairs.ids)
    assert_equal(log_sum_exp, pairs.of_rows[0])
    assert_equal(mean, pairs.logits.softmax(1).nan_to_num(nan=0) @ pairs.y)


def test_softmaxes_pull_at_rows_from_both_sides(pairs: Pairs) -> None:
    by_row = weights(pairs.logits, *(x[:, None] for x in pairs.of_rows)) @ pairs.y
    by_column = weights(pairs.logits, *pairs.of_columns) @ pairs.y
    inputs = pairs.x, pairs.y, *pairs.ids
    assert_equal(torch_tiles.pull(*inputs, by_row=pairs.of_rows), by_row)
    assert_equal(torch_tiles.pull(*inputs, by_column=pairs.of_columns), by_column)
    assert_equal(torch_tiles.pull(*inputs, by_row=pairs.of_rows, by_column=pairs.of_columns), by_row + by_column)


def test_softplus_sums_and_their_pull_are_those_of_all_logits(pairs: Pairs) -> None:
    inputs = pairs.x, pairs.y, *pairs.ids
    assert_equal(torch_tiles.softplus_sum(*inputs), (pairs.logits.relu() + (-pairs.logits.abs()).exp().log1p()).sum(1))
    of_rows, of_columns = pairs.of_rows[1], pairs.of_columns[1]
    by_row = (pairs.logits.sigmoid() * of_rows[:, None]) @ pairs.y
    by_column = (pairs.logits.sigmoid() * of_columns) @ pairs.y
    assert_equal(torch_tiles.sigmoid_pull(*inputs, by_row=of_rows), by_row)
    assert_equal(torch_tiles.sigmoid_pull(*inputs, by_column=of_columns), by_column)
    assert_equal(torch_tiles.sigmoid_pull(*inputs, by_row=of_rows, by_column=of_columns), by_row + by_column)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    x, y = random(7, 4).to(dtype), random(9, 4, seed=1).to(dtype)
    sums, mean = torch_tiles.attend(x, y)
    logits = x.double() @ y.double().T
    assert sums.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(sums.double(), logits.logsumexp(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean.double(), logits.softmax(1) @ y.double(), rtol=1e-6, atol=1e-6)
