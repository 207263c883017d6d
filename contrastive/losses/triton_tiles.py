"""The sums over all pairs on NVIDIA GPUs: what ``torch_tiles`` describes, with logits that never leave the chip.

A program owns a block of rows and goes over the columns. Where there are few rows, several programs share the columns,
and what they find is joined in a fixed order. There are no atomics, and the tiles depend on sizes and dtypes alone.

**Precision.** Products are summed in float32. Half precision goes to the tensor cores as it is; float32 is multiplied
in float32 ("ieee"), because a logit may be as large as 1 / temperature, and TF32's eleven bits would leave it an error
of 0.05 at temperature 0.01. Columns are converted to the rows' dtype tile by tile: float32 columns are rounded for
bfloat16 rows. The weights of the second product are rounded to that dtype too, by at most a relative 2^-8 (bfloat16) or
2^-11 (float16) each, independently: means and gradients are off by at most as much of their terms' sizes, and by less
the more columns have a say.

**One exponential for two softmaxes.** A pair's weight is ``a exp(s - l) + b exp(s - m)``, and the second exponential is
the first times ``exp(l - c) exp(c - m)``: a factor for the row and one for the column. Tiles in which l and m are too
far apart for that are treated with care, like those that have an end or equal ids in them, which are few.
"""
# ruff: noqa: N803

import math
import os
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

Rows = Float[Tensor, "N P"]
Columns = Float[Tensor, "M P"]
RowSoftmax = tuple[Float[Tensor, " N"], Float[Tensor, " N"]]
ColumnSoftmax = tuple[Float[Tensor, " M"], Float[Tensor, " M"]]

_WIDE_SHARED_MEMORY = 163 << 10  # bytes that a block must be able to have; an A100's can
_MAX_WIDTH = 256  # a row's gradient stays in registers
_NUM_PROGRAMS = 256  # about two for each multiprocessor of a large GPU
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Kernels read global numbers only if they are declared constant.
_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))
_FLOAT16_LIFT = tl.constexpr(13)  # binary digits, for the largest weight: two of them are still below 65,504
_REACH = tl.constexpr(60.0)  # binary digits: 2^60 times what float32 flushes to 0 is nothing, and 2^120 is finite

_NEVER_SPECIALIZED = ("num_rows", "num_columns", "share")  # another kernel for each would not be faster


@dataclass(frozen=True)
class Tiling:
    """Rows and columns of a tile of logits, and what a program gets of a multiprocessor."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# By the number of products, and whether rows are wider than 128. The second product's sums stay in registers, and so do
# the factors of a product that no tensor core makes. All that are compiled for are kept from spilling.
_HALF_TILINGS = {
    (1, False): Tiling(128, 64, num_warps=8, num_stages=3),
    (1, True): Tiling(128, 64, num_warps=8, num_stages=3),
    (2, False): Tiling(128, 64, num_warps=8, num_stages=3),
    (2, True): Tiling(128, 32, num_warps=8, num_stages=3),
}
_FLOAT32_TILINGS = {
    (1, False): Tiling(64, 64, num_warps=8, num_stages=2),
    (1, True): Tiling(32, 32, num_warps=8, num_stages=2),
    (2, False): Tiling(32, 32, num_warps=8, num_stages=2),
    (2, True): Tiling(32, 16, num_warps=8, num_stages=2),
}


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """As it comes: tensor cores take half precision."""
    return dtype


def why_not(rows: Rows) -> str | None:
    """What the kernels cannot do with these rows on their device; None if they can take them."""
    if rows.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"the Triton kernels take bfloat16, float16 and float32, not {str(rows.dtype).removeprefix('torch.')}"
    if rows.shape[1] > _MAX_WIDTH:
        return f"the Triton kernels take rows of at most {_MAX_WIDTH} numbers, not {rows.shape[1]}"
    return _why_not_on(torch.cuda.get_device_properties(rows.device), rows) if rows.is_cuda else None


def log_sum_exp(
    x: Rows, y: Columns, x_ids: Int64[Tensor, " N"] | None = None, y_ids: Int64[Tensor, " M"] | None = None
) -> Float[Tensor, " N"]:
    """See ``torch_tiles``; the result is float32."""
    if len(x) == 0 or len(y) == 0:
        return x.new_full((len(x),), -torch.inf, dtype=torch.float32)
    tiling = _tiling(x, num_products=1)
    arguments, num_shares = _arguments(x, y, x_ids, y_ids, tiling)
    parts = x.new_empty(num_shares, len(x), dtype=torch.float32)
    _run(_softmax, (_num_blocks(x, tiling.rows), num_shares), tiling, {**arguments, "lse": parts, "mean": None})
    return parts[0] if num_shares == 1 else parts.logsumexp(0)


def attend(
    x: Rows, y: Columns, x_ids: Int64[Tensor, " N"] | None = None, y_ids: Int64[Tensor, " M"] | None = None
) -> tuple[Float[Tensor, " N"], Rows]:
    """See ``torch_tiles``; the results are float32."""
    if len(x) == 0 or len(y) == 0:
        return log_sum_exp(x, y), x.new_zeros(x.shape, dtype=torch.float32)
    tiling = _tiling(x, num_products=2)
    arguments, num_shares = _arguments(x, y, x_ids, y_ids, tiling)
    parts = x.new_empty(num_shares, len(x), dtype=torch.float32)
    means = x.new_empty(num_shares, *x.shape, dtype=torch.float32)
    _run(_softmax, (_num_blocks(x, tiling.rows), num_shares), tiling, {**arguments, "lse": parts, "mean": means})
    if num_shares == 1:
        return parts[0], means[0]
    lse = parts.logsumexp(0)
    shares = (parts - torch.where(lse == -torch.inf, 0, lse)).exp_()
    return lse, means.mul_(shares[..., None]).sum(0)


def pull(
    x: Rows,
    y: Columns,
    x_ids: Int64[Tensor, " N"] | None = None,
    y_ids: Int64[Tensor, " M"] | None = None,
    *,
    by_row: RowSoftmax | None = None,
    by_column: ColumnSoftmax | None = None,
) -> Rows:
    """See ``torch_tiles``; the result is float32."""
    softmaxes = [softmax for softmax in (by_row, by_column) if softmax is not None]
    if len(x) == 0 or len(y) == 0 or len(softmaxes) == 0:
        return x.new_zeros(x.shape, dtype=torch.float32)
    tiling = _tiling(x, num_products=2)
    arguments, num_shares = _arguments(x, y, x_ids, y_ids, tiling)
    lift = _lift([weight for _, weight in softmaxes], x.dtype)
    arguments |= _softmax_arguments("row", by_row, lift) | _softmax_arguments("column", by_column, lift)
    lse_ranges, column_factor = None, None
    if by_row is not None and by_column is not None:
        num_blocks = _num_blocks(y, tiling.columns)
        lse_ranges, column_factor = x.new_empty(num_blocks, 2, dtype=torch.float32), torch.empty_like(by_column[0])
        survey = {name: arguments[name] for name in ("column_lse", "column_weight", "num_columns", "COLUMNS")}
        survey |= {"lse_ranges": lse_ranges, "column_factor": column_factor}
        _run(_survey_softmaxes, (num_blocks,), tiling, survey)
    parts = x.new_empty(num_shares, *x.shape, dtype=torch.float32)
    arguments |= {"lse_ranges": lse_ranges, "column_factor": column_factor, "result": parts}
    _run(_pull, (_num_blocks(x, tiling.rows), num_shares), tiling, arguments)
    result = parts[0] if num_shares == 1 else parts.sum(0)
    return result if lift is None else result / lift


def _why_not_on(gpu: Any, rows: Rows) -> str | None:
    if gpu.major < 8:
        return f"the Triton kernels need compute capability 8.0, and {gpu.name} has {gpu.major}.{gpu.minor}"
    if rows.shape[1] > 128 and gpu.shared_memory_per_block_optin < _WIDE_SHARED_MEMORY:
        return f"rows wider than 128 need more shared memory than a block has on {gpu.name}"
    return None


def _tiling(x: Rows, num_products: int) -> Tiling:
    is_wide = x.shape[1] > 128
    return _FLOAT32_TILINGS[num_products, is_wide] if x.dtype == torch.float32 else _HALF_TILINGS[num_products, is_wide]


def _arguments(
    x: Rows, y: Columns, x_ids: Tensor | None, y_ids: Tensor | None, tiling: Tiling
) -> tuple[dict[str, Any], int]:
    """What both kernels that make tiles are told, and among how many programs a block of rows shares its columns."""
    x, y = _with_whole_rows(x), _with_whole_rows(y)
    row_blocks, column_blocks = _num_blocks(x, tiling.rows), _num_blocks(y, tiling.columns)
    blocks_each = triton.cdiv(column_blocks, max(1, min(_NUM_PROGRAMS // row_blocks, column_blocks)))
    arguments = {
        "x": x,
        "y": y,
        "x_stride": x.stride(0),
        "y_stride": y.stride(0),
        "num_rows": len(x),
        "num_columns": len(y),
        "share": blocks_each * tiling.columns,
        "x_ids": None,
        "y_ids": None,
        "id_ranges": None,
        "WIDTH": x.shape[1],
        "BLOCK_WIDTH": max(16, triton.next_power_of_2(x.shape[1])),
        "ROWS": tiling.rows,
        "COLUMNS": tiling.columns,
        "INTERPRETED": _INTERPRETED,
    }
    if x_ids is not None and y_ids is not None:
        y_ids, ranges = y_ids.contiguous(), y_ids.new_empty(column_blocks, 2)
        survey = {"ids": y_ids, "id_ranges": ranges, "num_columns": len(y), "COLUMNS": tiling.columns}
        _run(_survey_ids, (column_blocks,), tiling, survey)
        arguments |= {"x_ids": x_ids.contiguous(), "y_ids": y_ids, "id_ranges": ranges}
    return arguments, triton.cdiv(column_blocks, blocks_each)


def _softmax_arguments(side: str, softmax: tuple[Tensor, Tensor] | None, lift: Tensor | None) -> dict[str, Any]:
    if softmax is None:
        return {f"{side}_lse": None, f"{side}_weight": None}
    lse, weight = softmax
    return {f"{side}_lse": lse.contiguous(), f"{side}_weight": (weight if lift is None else weight * lift).contiguous()}


def _lift(weights: list[Tensor], dtype: torch.dtype) -> Tensor | None:
    """What float16's weights are multiplied with, so that those of 2^-38 of the largest are still there; on the device.

    A mean over a large batch gives weights near float16's smallest number.
    """
    if dtype != torch.float16:
        return None
    largest = torch.stack([weight.abs().amax() for weight in weights]).amax()
    lift: Tensor = 2.0**_FLOAT16_LIFT.value / largest.clamp(min=2.0**-100)
    return lift


def _with_whole_rows(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _num_blocks(rows: Tensor, size: int) -> int:
    return int(triton.cdiv(len(rows), size))


def _run(kernel: Any, grid: tuple[int, ...], tiling: Tiling, arguments: dict[str, Any]) -> None:
    """Start a kernel on its tensors' device, not on the current one.

    Products and sums become one rounding where the kernels say ``tl.fma``, and not where a compiler sees fit.
    """
    tensor = next(value for value in arguments.values() if isinstance(value, Tensor))
    with torch.cuda.device_of(tensor):
        kernel[grid](**arguments, num_warps=tiling.num_warps, num_stages=tiling.num_stages, enable_fp_fusion=False)


@triton.jit(do_not_specialize=_NEVER_SPECIALIZED)
@no_type_check
def _survey_ids(ids, id_ranges, num_columns, COLUMNS: tl.constexpr):
    """The smallest and the largest id of each block of columns."""
    block = tl.program_id(0)
    places = tl.minimum(block * COLUMNS + tl.arange(0, COLUMNS), num_columns - 1)
    values = tl.load(ids + places)
    tl.store(id_ranges + 2 * block, tl.min(values, 0))
    tl.store(id_ranges + 2 * block + 1, tl.max(values, 0))


@triton.jit(do_not_specialize=_NEVER_SPECIALIZED)
@no_type_check
def _survey_softmaxes(column_lse, column_weight, lse_ranges, column_factor, num_columns, COLUMNS: tl.constexpr):
    """For each block of columns the range of their m in bits, and for each column its ``b exp(c - m)``.

    c is the middle of the block's range.
    """
    block = tl.program_id(0)
    places = tl.minimum(block * COLUMNS + tl.arange(0, COLUMNS), num_columns - 1)
    lse = _in_bits(tl.load(column_lse + places))
    low, high = tl.min(lse, 0), tl.max(lse, 0)
    tl.store(lse_ranges + 2 * block, low)
    tl.store(lse_ranges + 2 * block + 1, high)
    factor = tl.load(column_weight + places) * tl.exp2(tl.minimum(0.5 * (low + high) - lse, _REACH))
    tl.store(column_factor + places, factor)


@triton.jit(do_not_specialize=_NEVER_SPECIALIZED)
@no_type_check
def _softmax(
    x, y, x_stride, y_stride, num_rows, num_columns, share, x_ids, y_ids, id_ranges, lse, mean,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp of a block of rows over a share of the columns, and where wanted the softmax's mean of them."""
    dtype: tl.constexpr = x.dtype.element_ty
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    block = _load(x, x_stride, first_row, num_rows, ROWS, WIDTH, BLOCK_WIDTH)
    block = _operand(block, dtype, INTERPRETED)
    id_low, id_high = _id_range(x_ids, rows, num_rows)
    lift: tl.constexpr = _FLOAT16_LIFT if dtype == tl.float16 else 0
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if mean is not None:
        sums = tl.zeros([ROWS, BLOCK_WIDTH], tl.float32)
    first = tl.program_id(1) * share
    for start in tl.range(first, tl.minimum(first + share, num_columns), COLUMNS):
        with_care = _may_leave_out(id_ranges, id_low, id_high, start, num_columns, COLUMNS)
        others = _load(y, y_stride, start, num_columns, COLUMNS, WIDTH, BLOCK_WIDTH)
        others = _operand(others, dtype, INTERPRETED)
        logits = tl.dot(block, tl.trans(others), input_precision="ieee")
        if with_care:
            logits = _left_out(logits, x_ids, y_ids, rows, start, num_rows, num_columns, COLUMNS)
        now_largest = tl.maximum(largest, tl.max(logits, 1))
        anchor = _in_bits(now_largest)
        shrunk, terms = _exp(largest, anchor), _exp(logits, (anchor - lift)[:, None])
        total = tl.fma(total, shrunk, tl.sum(terms, 1))
        if mean is not None:
            terms = _operand(terms, dtype, INTERPRETED)
            sums = tl.dot(terms, others, sums * shrunk[:, None], input_precision="ieee")
        largest = now_largest
    part = tl.program_id(1).to(tl.int64) * num_rows
    divisor = tl.where(total == 0, 1.0, total)
    result = tl.where(total == 0, float("-inf"), (_in_bits(largest) - lift + tl.log2(divisor)) * _LN_2)
    tl.store(lse + part + rows, result, mask=rows < num_rows)
    if mean is not None:
        sums /= divisor[:, None]
        _store(mean + part * WIDTH, sums, first_row, num_rows, ROWS, WIDTH, BLOCK_WIDTH)


@triton.jit(do_not_specialize=_NEVER_SPECIALIZED)
@no_type_check
def _pull(
    x, y, x_stride, y_stride, num_rows, num_columns, share, x_ids, y_ids, id_ranges,
    row_lse, row_weight, column_lse, column_weight, lse_ranges, column_factor, result,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """What a share of the columns pulls at a block of rows with."""
    dtype: tl.constexpr = x.dtype.element_ty
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    block = _load(x, x_stride, first_row, num_rows, ROWS, WIDTH, BLOCK_WIDTH)
    block = _operand(block, dtype, INTERPRETED)
    id_low, id_high = _id_range(x_ids, rows, num_rows)
    if row_lse is not None:
        known_rows = tl.minimum(rows, num_rows - 1)
        lse = _in_bits(tl.load(row_lse + known_rows))
        weight = tl.load(row_weight + known_rows)
        lse_low, lse_high = tl.min(lse, 0), tl.max(lse, 0)
    sums = tl.zeros([ROWS, BLOCK_WIDTH], tl.float32)
    first = tl.program_id(1) * share
    for start in tl.range(first, tl.minimum(first + share, num_columns), COLUMNS):
        with_care = _may_leave_out(id_ranges, id_low, id_high, start, num_columns, COLUMNS)
        if column_factor is not None:
            column_low = tl.load(lse_ranges + 2 * (start // COLUMNS))
            column_high = tl.load(lse_ranges + 2 * (start // COLUMNS) + 1)
            with_care = with_care | (lse_high - column_low > _REACH) | (column_high - lse_low > _REACH)
        others = _load(y, y_stride, start, num_columns, COLUMNS, WIDTH, BLOCK_WIDTH)
        others = _operand(others, dtype, INTERPRETED)
        logits = tl.dot(block, tl.trans(others), input_precision="ieee")
        if with_care:
            logits = _left_out(logits, x_ids, y_ids, rows, start, num_rows, num_columns, COLUMNS)
        known = tl.minimum(start + tl.arange(0, COLUMNS), num_columns - 1)
        if row_lse is None:
            weights = _exp(logits, _in_bits(tl.load(column_lse + known))[None, :])
            weights *= tl.load(column_weight + known)[None, :]
        elif column_lse is None:
            weights = _exp(logits, lse[:, None]) * weight[:, None]
        elif with_care:
            weights = _exp(logits, _in_bits(tl.load(column_lse + known))[None, :])
            weights *= tl.load(column_weight + known)[None, :]
            weights = tl.fma(_exp(logits, lse[:, None]), weight[:, None], weights)
        else:
            row_factor = tl.exp2(lse - 0.5 * (column_low + column_high))
            factor = tl.load(column_factor + known)
            weights = _exp(logits, lse[:, None]) * tl.fma(row_factor[:, None], factor[None, :], weight[:, None])
        sums = tl.dot(_operand(weights, dtype, INTERPRETED), others, sums, input_precision="ieee")
    part = tl.program_id(1).to(tl.int64) * num_rows
    _store(result + part * WIDTH, sums, first_row, num_rows, ROWS, WIDTH, BLOCK_WIDTH)


@triton.jit
@no_type_check
def _load(rows, stride, first, num_rows, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """A block of rows [ROWS, BLOCK_WIDTH], 0 beyond their number and width."""
    places, width = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK_WIDTH)[None, :]
    inside = first + places < num_rows
    if WIDTH < BLOCK_WIDTH:
        inside = inside & (width < WIDTH)
    return tl.load(rows + tl.cast(first, tl.int64) * stride + (places * stride + width), mask=inside, other=0.0)


@triton.jit
@no_type_check
def _store(to, values, first, num_rows, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    places, width = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK_WIDTH)[None, :]
    inside = first + places < num_rows
    if WIDTH < BLOCK_WIDTH:
        inside = inside & (width < WIDTH)
    tl.store(to + tl.cast(first, tl.int64) * WIDTH + (places * WIDTH + width), values, mask=inside)


@triton.jit
@no_type_check
def _operand(tile, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """A product's factor. The interpreter multiplies no bfloat16, but float32 of the same values."""
    tile = tile.to(dtype)
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
@no_type_check
def _exp(logits, lse):
    """``exp(logits - lse)`` with lse in bits."""
    return tl.exp2(tl.fma(logits, _LOG2_E, -lse))


@triton.jit
@no_type_check
def _in_bits(lse):
    """In units of log 2; 0 in place of -inf, so that what is left out stays at exp(-inf - 0) = 0 instead of NaN."""
    return tl.where(lse == float("-inf"), 0.0, lse * _LOG2_E)


@triton.jit
@no_type_check
def _id_range(ids, rows, num_rows):
    """The smallest and the largest id of a block of rows; without ids nobody asks."""
    low, high = 0, 0
    if ids is not None:
        values = tl.load(ids + tl.minimum(rows, num_rows - 1))
        low, high = tl.min(values, 0), tl.max(values, 0)
    return low, high


@triton.jit
@no_type_check
def _may_leave_out(id_ranges, id_low, id_high, start, num_columns, COLUMNS: tl.constexpr):
    """Whether a tile goes beyond the last column, or an id of its rows may be one of its columns'."""
    answer = start + COLUMNS > num_columns
    if id_ranges is not None:
        place = id_ranges + 2 * (start // COLUMNS)
        answer = answer | ((tl.load(place) <= id_high) & (tl.load(place + 1) >= id_low))
    return answer


@triton.jit
@no_type_check
def _left_out(logits, x_ids, y_ids, rows, start, num_rows, num_columns, COLUMNS: tl.constexpr):
    """The logits, -inf beyond the last column and where ids are equal."""
    columns = start + tl.arange(0, COLUMNS)
    keep = (columns < num_columns)[None, :]
    if x_ids is not None:
        row_ids = tl.load(x_ids + tl.minimum(rows, num_rows - 1))
        column_ids = tl.load(y_ids + tl.minimum(columns, num_columns - 1))
        keep = keep & (row_ids[:, None] != column_ids[None, :])
    return tl.where(keep, logits, float("-inf"))
