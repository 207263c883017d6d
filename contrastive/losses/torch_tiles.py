"""The sums over all pairs that contrastive losses are made of, tile by tile, in plain torch on any device.

Logits are dot products ``s_ij = <x_i, y_j>``; a scale or temperature is multiplied into the rows beforehand. Pairs with
equal ids are left out. No more than one tile of logits exists at a time, so memory grows with the rows and not with
their product. Rows of half precision are widened tile by tile: their products are exact in float32.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Rows = Float[Tensor, "N P"]
Columns = Float[Tensor, "M P"]
RowSoftmaxes = tuple[Float[Tensor, " N"], Float[Tensor, " N"]]
"""What softmaxes over logits are known by: their log-sum-exp, and the weight that their gradient is multiplied with."""
ColumnSoftmaxes = tuple[Float[Tensor, " M"], Float[Tensor, " M"]]
"""The same of softmaxes over the rows, one for each column."""

TILE = 1024  # rows and columns: 4 MiB of float32 logits; smaller ones keep a second thread waiting


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 or better: half precision saves nothing here."""
    return torch.promote_types(dtype, torch.float32)


def log_sum_exp(
    x: Rows, y: Columns, x_ids: Int64[Tensor, " N"] | None = None, y_ids: Int64[Tensor, " M"] | None = None
) -> Float[Tensor, " N"]:
    """``log sum_j exp(s_ij)`` over the columns with another id.

    Args:
        x: One row for each sum.
        y: One column for each term, of the same dtype.
        x_ids: With ``y_ids``; without them no pair is left out.
        y_ids: See ``x_ids``.

    Returns:
        float32, or float64 for float64; -inf where every column is left out.
    """
    result = x.new_empty(len(x), dtype=_wide(x))
    for rows in _blocks(x):
        largest, total = result.new_full((len(x[rows]),), -torch.inf), result.new_zeros(len(x[rows]))
        for _, logits in _tiles(x, y, x_ids, y_ids, rows):
            now_largest = torch.maximum(largest, logits.amax(1))
            anchor = _finite(now_largest)
            total.mul_((largest - anchor).exp_()).add_(logits.sub_(anchor[:, None]).exp_().sum(1))
            largest = now_largest
        result[rows] = total.log_().add_(_finite(largest))
    return result


def attend(
    x: Rows, y: Columns, x_ids: Int64[Tensor, " N"] | None = None, y_ids: Int64[Tensor, " M"] | None = None
) -> tuple[Float[Tensor, " N"], Rows]:
    """The log-sum-exp, and its gradient in each row, the softmax's mean of the columns ``sum_j exp(s_ij - l_i) y_j``.

    Args:
        x: As for the log-sum-exp, with ``y``, ``x_ids`` and ``y_ids``.
        y: See ``x``.
        x_ids: See ``x``.
        y_ids: See ``x``.

    Returns:
        [N] and [N, P], float32, or float64 for float64; -inf and 0 where every column is left out.
    """
    result, mean = x.new_empty(len(x), dtype=_wide(x)), x.new_zeros(x.shape, dtype=_wide(x))
    for rows in _blocks(x):
        largest, total = result.new_full((len(x[rows]),), -torch.inf), result.new_zeros(len(x[rows]))
        for columns, logits in _tiles(x, y, x_ids, y_ids, rows):
            now_largest = torch.maximum(largest, logits.amax(1))
            anchor = _finite(now_largest)
            shrunk = (largest - anchor).exp_()
            terms = logits.sub_(anchor[:, None]).exp_()
            total.mul_(shrunk).add_(terms.sum(1))
            mean[rows].mul_(shrunk[:, None]).addmm_(terms, y[columns].to(mean.dtype))
            largest = now_largest
        mean[rows] /= torch.where(total == 0, 1, total)[:, None]
        result[rows] = total.log_().add_(_finite(largest))
    return result, mean


def pull(
    x: Rows,
    y: Columns,
    x_ids: Int64[Tensor, " N"] | None = None,
    y_ids: Int64[Tensor, " M"] | None = None,
    *,
    by_row: RowSoftmaxes | None = None,
    by_column: ColumnSoftmaxes | None = None,
) -> Rows:
    """What the softmaxes' gradients are in ``x``: ``sum_j (a_i exp(s_ij - l_i) + b_j exp(s_ij - m_j)) y_j``.

    Args:
        x: Where the gradient is wanted.
        y: The other side of each logit.
        x_ids: As for the log-sum-exp.
        y_ids: Likewise.
        by_row: (l, a), each [N]: of softmaxes over the columns, whose rows are x.
        by_column: (m, b), each [M]: of softmaxes over the rows, whose rows are y.

    Returns:
        [N, P], float32, or float64 for float64.
    """
    result = x.new_zeros(x.shape, dtype=_wide(x))
    for rows in _blocks(x):
        for columns, logits in _tiles(x, y, x_ids, y_ids, rows):
            weights = None
            if by_row is not None:
                lse, weight = by_row
                weights = (logits - _finite(lse[rows])[:, None]).exp_().mul_(weight[rows, None])
            if by_column is not None:
                lse, weight = by_column
                others = logits.sub_(_finite(lse[columns])).exp_().mul_(weight[columns])
                weights = others if weights is None else weights.add_(others)
            assert weights is not None
            result[rows].addmm_(weights, y[columns].to(result.dtype))
    return result


def softplus_sum(
    x: Rows, y: Columns, x_ids: Int64[Tensor, " N"] | None = None, y_ids: Int64[Tensor, " M"] | None = None
) -> Float[Tensor, " N"]:
    """``sum_j softplus(s_ij)`` over the columns with another id: float32, or float64 for float64; [N]."""
    result = x.new_zeros(len(x), dtype=_wide(x))
    for rows in _blocks(x):
        for _, logits in _tiles(x, y, x_ids, y_ids, rows):
            result[rows] += torch.logaddexp(logits, logits.new_zeros(())).sum(1)
    return result


def sigmoid_pull(
    x: Rows,
    y: Columns,
    x_ids: Int64[Tensor, " N"] | None = None,
    y_ids: Int64[Tensor, " M"] | None = None,
    *,
    by_row: Float[Tensor, " N"] | None = None,
    by_column: Float[Tensor, " M"] | None = None,
) -> Rows:
    """What the softplus sums' gradients are in ``x``: ``sum_j (a_i + b_j) sigmoid(s_ij) y_j``, [N, P].

    Args:
        x: Where the gradient is wanted.
        y: The other side of each logit.
        x_ids: As for the sum.
        y_ids: Likewise.
        by_row: a, the weights of sums over the columns.
        by_column: b, the weights of sums over the rows.
    """
    result = x.new_zeros(x.shape, dtype=_wide(x))
    for rows in _blocks(x):
        for columns, logits in _tiles(x, y, x_ids, y_ids, rows):
            weight = 0 if by_row is None else by_row[rows, None]
            weight = weight if by_column is None else weight + by_column[columns]
            result[rows].addmm_(logits.sigmoid_().mul_(weight), y[columns].to(result.dtype))
    return result


def _tiles(
    x: Rows, y: Columns, x_ids: Tensor | None, y_ids: Tensor | None, rows: slice
) -> Iterator[tuple[slice, Float[Tensor, "n m"]]]:
    """The logits of some rows, -inf where ids are equal; a tile's memory is used again for the next."""
    wide = x[rows].to(_wide(x))
    memory = wide.new_empty(len(wide) * min(TILE, len(y)))
    for columns in _blocks(y):
        other = y[columns].to(wide.dtype)
        logits = memory[: len(wide) * len(other)].view(len(wide), len(other))
        torch.mm(wide, other.T, out=logits)
        if x_ids is not None and y_ids is not None and _may_meet(x_ids[rows], y_ids[columns]):
            logits.masked_fill_(x_ids[rows, None] == y_ids[columns], -torch.inf)
        yield columns, logits


def _blocks(x: Tensor) -> list[slice]:
    return [slice(start, start + TILE) for start in range(0, len(x), TILE)]


def _may_meet(some: Tensor, others: Tensor) -> bool:
    """Whether two sets of ids can share one. On a CPU it costs less to ask than to look at a whole tile."""
    if some.device.type != "cpu":
        return True  # asking would wait
    return bool(some.min() <= others.max() and others.min() <= some.max())


def _finite(lse: Tensor) -> Tensor:
    """Zero in place of -inf, so that what is left out stays at exp(-inf - 0) = 0 instead of NaN."""
    return torch.where(lse == -torch.inf, 0, lse)


def _wide(x: Tensor) -> torch.dtype:
    return working_dtype(x.dtype)
