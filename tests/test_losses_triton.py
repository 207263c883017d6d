"""The Triton tiles against plain matrices in float64; on a CPU they are interpreted (see conftest)."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor

from contrastive.losses import clip, info_nce, info_nce_queue, nt_xent, softmax, triton_tiles
from contrastive.losses.backends import Tiles
from tests.compile_offline import compiled

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# How far a mean or a gradient may be off, as a share of its terms' sizes: half a step of the dtype, and where the
# interpreter cuts off instead of rounding, a whole one.
ROUNDING = {
    torch.float32: 1e-6,
    torch.bfloat16: 1.01 * (2**-8 if torch.cuda.is_available() else 2**-7),
    torch.float16: 1.01 * 2**-11,
}


class Pairs(NamedTuple):
    """Rows and columns, their ids, and the rows' and the columns' softmaxes: (log-sum-exp, weights)."""

    x: Tensor
    y: Tensor
    ids: tuple[Tensor, ...]
    by_row: tuple[Tensor, Tensor]
    by_column: tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=[1, 256])
def num_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Few, so that each goes over many tiles; many, so that they share the columns."""
    monkeypatch.setattr(triton_tiles, "_NUM_PROGRAMS", request.param)
    return int(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_ids(count: int, seed: int) -> Tensor:
    """Few enough for every row to be equal to some columns, and far apart."""
    return torch.randint(-20, 20, (count,), generator=torch.Generator().manual_seed(seed)) * 2**40


def logits_of(x: Tensor, y: Tensor, ids: tuple[Tensor, ...]) -> Tensor:
    logits = x.double() @ y.double().T
    return logits.masked_fill(ids[0][:, None] == ids[1], -torch.inf) if ids else logits


def finite(lse: Tensor) -> Tensor:
    return lse.nan_to_num(neginf=0)


def described(x: Tensor, y: Tensor, ids: tuple[Tensor, ...], device: str) -> Pairs:
    logits = logits_of(x, y, ids)
    by_row = logits.logsumexp(1).float(), random(len(x), seed=4).float() / len(x)
    by_column = logits.logsumexp(0).float(), random(len(y), seed=5).float() / len(x)
    x, y, *ids, row_lse, row_weight, column_lse, column_weight = (
        value.to(device) for value in (x, y, *ids, *by_row, *by_column)
    )
    return Pairs(x, y, tuple(ids), (row_lse, row_weight), (column_lse, column_weight))


def some_pairs(
    rows: int, columns: int, width: int, dtype: torch.dtype, device: str, *, scale: float = 1.0, with_ids: bool = True
) -> Pairs:
    """Of logits of about the size of ``scale``."""
    x, y = ((scale**0.5 * random(count, width, seed=count) / width**0.25).to(dtype) for count in (rows, columns))
    return described(x, y, (random_ids(rows, 2), random_ids(columns, 3)) if with_ids else (), device)


def assert_log_sum_exp(ours: Tensor, pairs: Pairs) -> None:
    expected = logits_of(*pairs[:3]).logsumexp(1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=4e-7 * largest_terms(pairs))


def assert_weighted_sum(ours: Tensor, weights: list[Tensor], pairs: Pairs) -> None:
    """What the sum of the weights of each pair makes of the columns, within the weights' rounding."""
    assert ours.dtype == torch.float32
    y = pairs.y.to(pairs.x.dtype).double()
    together = torch.stack(weights)  # [K, N, M]
    error = (ours.double() - together.sum(0) @ y).abs()
    size = together.abs().sum(0) @ y.abs()
    # An exponential turns the error of a logit, or of the log-sum-exp it is given, into a relative one.
    share = ROUNDING[pairs.x.dtype] + 4e-7 * largest_terms(pairs)
    smallest = 2.0**-36 if pairs.x.dtype == torch.float16 else 2.0**-100  # of the largest weight: less is nothing
    lost = smallest * together.abs().amax() * y.abs().sum(0)
    assert (error <= share * size + lost).all(), (error / size).nan_to_num(0).amax()


def largest_terms(pairs: Pairs) -> float:
    """A logit is rounded relative to the sum of its terms' sizes."""
    return max(1.0, (pairs.x.double().abs() @ pairs.y.double().abs().T).amax().item())


def assert_all_exact(pairs: Pairs) -> None:
    x, y, ids, (row_lse, row_weight), (column_lse, column_weight) = pairs
    logits = logits_of(x, y, ids)
    assert_log_sum_exp(triton_tiles.log_sum_exp(x, y, *ids), pairs)
    lse, mean = triton_tiles.attend(x, y, *ids)
    assert_log_sum_exp(lse, pairs)
    assert_weighted_sum(mean, [(logits - finite(logits.logsumexp(1))[:, None]).exp()], pairs)
    by_row = (logits - finite(row_lse.double())[:, None]).exp() * row_weight.double()[:, None]
    by_column = (logits - finite(column_lse.double())).exp() * column_weight.double()
    assert_weighted_sum(triton_tiles.pull(x, y, *ids, by_row=pairs.by_row), [by_row], pairs)
    assert_weighted_sum(triton_tiles.pull(x, y, *ids, by_column=pairs.by_column), [by_column], pairs)
    both = triton_tiles.pull(x, y, *ids, by_row=pairs.by_row, by_column=pairs.by_column)
    assert_weighted_sum(both, [by_row, by_column], pairs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.usefixtures("num_programs")
def test_sums_over_all_pairs_are_those_of_whole_matrices(with_ids: bool, dtype: torch.dtype, device: str) -> None:
    assert_all_exact(some_pairs(131, 97, 20, dtype, device, with_ids=with_ids))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (3, 64, 16), (128, 2, 17)])
def test_small_and_thin_matrices_are_taken(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    assert_all_exact(some_pairs(*shape, dtype, device))


def test_an_odd_number_of_programs_may_share_the_columns(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tiles, "_NUM_PROGRAMS", 3)
    assert_all_exact(some_pairs(20, 450, 16, torch.bfloat16, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [127, 129, 256])
def test_rows_may_be_up_to_256_wide(width: int, dtype: torch.dtype, device: str) -> None:
    assert triton_tiles.why_not(torch.zeros(1, width, dtype=dtype, device=device)) is None
    assert_all_exact(some_pairs(17, 70, width, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("num_programs")
def test_a_temperature_of_1_in_1000_is_finite_and_right(dtype: torch.dtype, device: str) -> None:
    assert_all_exact(some_pairs(40, 150, 20, dtype, device, scale=1000.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("num_programs")
def test_blocks_of_small_and_of_large_logits_may_meet(dtype: torch.dtype, device: str) -> None:
    """What two softmaxes over a pair have in common, one exponential, is only there where they are alike."""
    sizes = torch.tensor([1.0, 9.0, 0.3]).repeat_interleave(50)[:, None]
    x, y = sizes * random(150, 16), sizes.flip(0)[:120] * random(120, 16, seed=1)
    assert_all_exact(described(x.to(dtype), y.to(dtype), (), device))


@pytest.mark.usefixtures("num_programs")
def test_a_steadily_growing_maximum_is_followed(device: str) -> None:
    x, y = random(3, 4), torch.linspace(-60, 60, 500).double()[:, None] * random(1, 4, seed=1)
    assert_all_exact(described(x.float(), y.float(), (), device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("num_programs")
def test_rows_without_any_other_id_have_nothing_to_sum_over(dtype: torch.dtype, device: str) -> None:
    x, y = random(40, 8).to(dtype), random(90, 8, seed=1).to(dtype)
    ids = torch.zeros(40).long(), torch.zeros(90).long()
    pairs = described(x, y, ids, device)
    assert triton_tiles.log_sum_exp(pairs.x, pairs.y, *pairs.ids).eq(-torch.inf).all()
    assert_all_exact(pairs)
    ids[0][3:6] = 1
    assert_all_exact(described(x, y, ids, device))


def test_the_one_id_that_two_blocks_share_is_found(device: str) -> None:
    """Only where the ranges of ids touch are they compared one by one."""
    x, y = random(20, 8).bfloat16(), random(128, 8, seed=1).bfloat16()
    column_ids = torch.tensor([0] * 63 + [5] + [5] + [9] * 63)
    assert_all_exact(described(x, y, (torch.full((20,), 5), column_ids), device))


def test_without_columns_or_rows_there_is_nothing(device: str) -> None:
    some, none = torch.ones(3, 8, device=device), torch.ones(0, 8, device=device)
    softmax_of = {3: (torch.ones(3, device=device),) * 2, 0: (torch.ones(0, device=device),) * 2}
    for x, y in [(some, none), (none, some), (none, none)]:
        assert triton_tiles.log_sum_exp(x, y).tolist() == [-torch.inf] * len(x)
        lse, mean = triton_tiles.attend(x, y)
        assert lse.tolist() == [-torch.inf] * len(x)
        pulled = triton_tiles.pull(x, y, by_row=softmax_of[len(x)], by_column=softmax_of[len(y)])
        for result in (mean, pulled):
            assert result.shape == x.shape
            assert result.eq(0).all()


@pytest.mark.parametrize(("rows", "columns"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_columns_of_another_dtype_are_taken_in_the_rows(rows: torch.dtype, columns: torch.dtype, device: str) -> None:
    x, y = random(20, 16).to(rows), random(90, 16, seed=1).to(torch.bfloat16).to(columns)  # nothing is lost
    assert_all_exact(described(x, y, (), device))


def test_float32_columns_are_rounded_for_bfloat16_rows(device: str) -> None:
    x, rounded = (random(count, 16, seed=count).bfloat16().to(device) for count in (20, 90))
    y = rounded.float() * (1 + 2**-12)
    assert torch.equal(triton_tiles.log_sum_exp(x, y), triton_tiles.log_sum_exp(x, rounded))


def test_rows_and_weights_may_lie_anywhere_in_memory(device: str) -> None:
    pairs = some_pairs(50, 150, 20, torch.float32, device)
    wide = torch.cat([pairs.y, pairs.y], dim=1)
    weight = torch.tensor(0.01, device=device).expand(50)
    elsewhere = [pairs.x.T.contiguous().T, wide[:, 20:], *(torch.stack([one, one], 1)[:, 1] for one in pairs.ids)]
    together = torch.stack(pairs.by_column, 1)
    here = {"by_row": (pairs.by_row[0], weight.contiguous()), "by_column": pairs.by_column}
    there = {"by_row": (pairs.by_row[0], weight), "by_column": together.unbind(1)}
    expected = triton_tiles.pull(pairs.x, pairs.y, *pairs.ids, **here)
    assert torch.equal(triton_tiles.pull(*elsewhere, **there), expected)


def test_the_same_rows_give_the_same_bits(device: str) -> None:
    pairs = some_pairs(150, 300, 64, torch.bfloat16, device)
    softmaxes: dict[str, Any] = {"by_row": pairs.by_row, "by_column": pairs.by_column}
    results = [
        (*triton_tiles.attend(*pairs[:2], *pairs.ids), triton_tiles.pull(*pairs[:2], *pairs.ids, **softmaxes))
        for _ in range(3 if device == "cuda" else 2)
    ]
    for again in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], again, strict=True))


def test_a_number_that_is_none_is_not_hidden(device: str) -> None:
    x = random(5, 8).float().to(device)
    y = x.clone()
    x[2, 3] = torch.nan
    assert triton_tiles.log_sum_exp(x, y).isnan().tolist() == [False, False, True, False, False]
    assert triton_tiles.log_sum_exp(y, x).isnan().all()


@pytest.mark.parametrize("weight", [2.0**-20, 2.0**-40, 2.0**15])
def test_float16_keeps_weights_beyond_its_numbers(weight: float, device: str) -> None:
    pairs = some_pairs(40, 300, 16, torch.float16, device)
    by_row, by_column = ((lse, torch.full_like(lse, weight)) for lse in (pairs.by_row[0], pairs.by_column[0]))
    assert_all_exact(pairs._replace(by_row=by_row, by_column=by_column))


def test_zero_weights_pull_with_nothing(device: str) -> None:
    pairs = some_pairs(4, 5, 3, torch.float16, device)
    softmaxes: dict[str, Any] = {"by_row": (pairs.by_row[0], torch.zeros(4, device=device))}
    assert triton_tiles.pull(pairs.x, pairs.y, **softmaxes).eq(0).all()


def test_float16_keeps_many_small_terms_beside_a_large_one(device: str) -> None:
    y = torch.zeros(3001, 2, device=device, dtype=torch.float16)
    y[0, 0], y[1:, 1] = 17.5, 1.0  # exp(-17.5) is below 2^-25
    x = torch.tensor([[1.0, 0.0]], device=device, dtype=torch.float16)
    _, mean = triton_tiles.attend(x, y)
    expected = (x.double() @ y.double().T).softmax(1) @ y.double()
    torch.testing.assert_close(mean.double(), expected, rtol=2e-3, atol=0)


def loss_and_gradients(loss: Any, *inputs: Tensor) -> list[Tensor]:
    leaves = [one.detach().clone().requires_grad_() for one in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def dense_nt_xent(projections: Tensor, temperature: float) -> Tensor:
    logits = (unit(projections) @ unit(projections).T / temperature).fill_diagonal_(-torch.inf)
    count = len(projections)
    return torch.nn.functional.cross_entropy(logits, torch.arange(count).roll(count // 2).to(logits.device))


def dense_info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    logits = unit(queries) @ unit(keys).T / temperature
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(queries)).to(logits.device))


def dense_queue(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    positives = (unit(queries) * unit(keys)).sum(1, keepdim=True)
    logits = torch.cat([positives, unit(queries) @ queue.T], dim=1) / temperature
    return torch.nn.functional.cross_entropy(logits, torch.zeros(len(queries)).long().to(logits.device))


def dense_clip(some: Tensor, others: Tensor, temperature: float) -> Tensor:
    return (dense_info_nce(some, others, temperature) + dense_info_nce(others, some, temperature)) / 2


@pytest.mark.parametrize("temperature", [0.1, 0.001])
@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "info_nce_queue", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_the_formulas(
    dtype: torch.dtype, name: str, temperature: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "tiles_for", lambda backend, rows: cast(Tiles, triton_tiles))
    left = random(70, 24).to(dtype).to(device)
    right = (left + 2 * random(70, 24, seed=1).to(device)).to(dtype)
    queue = unit(random(200, 24, seed=2)).to(dtype).to(device)
    ours, dense, inputs = {
        "nt_xent": (nt_xent, dense_nt_xent, (torch.cat([left, right]),)),
        "info_nce": (info_nce, dense_info_nce, (left, right)),
        "info_nce_queue": (info_nce_queue, dense_queue, (left, right)),
        "clip": (clip, dense_clip, (left, right)),
    }[name]
    frozen = (queue,) if name == "info_nce_queue" else ()
    setting = {"scale": 1 / temperature} if name == "clip" else {"temperature": temperature}
    found = loss_and_gradients(lambda *given: ours(*given, *frozen, **setting), *inputs)
    expected = loss_and_gradients(
        lambda *given: dense(*given, *(one.double() for one in frozen), temperature),
        *(one.double() for one in inputs),
    )
    # bfloat16 rounds unit rows, and so each logit by up to 2^-8 / temperature
    relative = 1e-4 if dtype == torch.float32 else 0.02
    noise = 3e-7 / temperature if dtype == torch.float32 else 2**-8 / temperature / 4
    torch.testing.assert_close(found[0].double(), expected[0], rtol=relative, atol=noise)
    if dtype == torch.float32 or temperature > 0.05:
        for gradient, right_one in zip(found[1:], expected[1:], strict=True):
            error = (gradient.double() - right_one).norm() / right_one.norm()
            assert error < (1e-6 + 1e-6 / temperature if dtype == torch.float32 else 0.01 + 0.004 / temperature)


def test_what_the_kernels_do_not_take_is_said() -> None:
    double, wide = torch.zeros(2, 8).double(), torch.zeros(2, 257)
    assert triton_tiles.why_not(double) == "the Triton kernels take bfloat16, float16 and float32, not float64"
    assert triton_tiles.why_not(wide) == "the Triton kernels take rows of at most 256 numbers, not 257"
    assert triton_tiles.why_not(wide[:, 1:]) is None


class Gpu(NamedTuple):
    """What a GPU says of itself."""

    name: str
    major: int
    minor: int
    shared_memory_per_block_optin: int


def test_gpus_that_are_too_small_are_left_to_others() -> None:
    wide, narrow = torch.zeros(2, 129), torch.zeros(2, 128)
    old, small, large = Gpu("T4", 7, 5, 2**16), Gpu("RTX 4090", 8, 9, 101376), Gpu("A100", 8, 0, 166912)
    reason = "the Triton kernels need compute capability 8.0, and T4 has 7.5"
    assert triton_tiles._why_not_on(old, narrow) == reason
    reason = "rows wider than 128 need more shared memory than a block has on RTX 4090"
    assert triton_tiles._why_not_on(small, wide) == reason
    assert triton_tiles._why_not_on(small, narrow) is None
    assert triton_tiles._why_not_on(large, wide) is None


def test_half_precision_stays_as_it_is() -> None:
    assert [triton_tiles.working_dtype(dtype) for dtype in DTYPES] == DTYPES


def test_memory_grows_with_the_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of programs that share columns are few: as many as fit beside each other on a GPU."""
    allocated: list[int] = []

    def measure(kernel: Any, grid: Any, tiling: Any, arguments: dict[str, Any]) -> None:
        results = [arguments.get(name) for name in ("lse", "mean", "result")]
        allocated.append(sum(one.numel() * one.element_size() for one in results if one is not None))

    monkeypatch.setattr(triton_tiles, "_run", measure)
    for count in (2**18, 256):
        with torch.device("meta"):
            x, y, values = torch.empty(count, 256).bfloat16(), torch.empty(2**18, 256).bfloat16(), torch.empty(count)
            triton_tiles.attend(x, y)
            triton_tiles.pull(x, y, by_row=(values, values))
    assert max(allocated) <= 2**29


def assert_in_registers(kernels: list[dict[str, Any]]) -> None:
    assert [kernel for kernel in kernels if kernel["stack"] or kernel["local"]] == []
    assert all(kernel["registers"] * kernel["warps"] * 32 <= 2**16 for kernel in kernels)
    assert all(kernel["shared"] <= triton_tiles._WIDE_SHARED_MEMORY for kernel in kernels)
    narrow = [kernel for kernel in kernels if kernel["told"].get("WIDTH", 1) <= 128]
    assert all(kernel["shared"] <= 99 << 10 for kernel in narrow)
    products = [kernel for kernel in kernels if kernel["dtype"] is not None]
    assert all(kernel["uses_tensor_cores"] == (kernel["dtype"] != "torch.float32") for kernel in products)


def test_kernels_compile_for_three_generations_of_gpus_without_spilling_registers(tmp_path: Path) -> None:
    kernels = compiled("compile_losses_triton", tmp_path, "80,90,100", "bfloat16", "256", "pull_by_both", "with_ids")
    assert {kernel["kernel"] for kernel in kernels} == {"_pull", "_survey_ids", "_survey_softmaxes"}
    assert_in_registers(kernels)
    functions = "log_sum_exp,attend,pull_by_row,pull_by_column,pull_by_both"
    kernels = compiled("compile_losses_triton", tmp_path, "90", "bfloat16", "128,256", functions, "with_ids")
    assert {kernel["kernel"] for kernel in kernels} == {"_pull", "_softmax", "_survey_ids", "_survey_softmaxes"}
    assert_in_registers(kernels)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_kernels_compile_without_spilling_registers(dtype: str, tmp_path: Path) -> None:
    widths, functions = "128,256", "log_sum_exp,attend,pull_by_row,pull_by_column,pull_by_both"
    assert_in_registers(
        compiled("compile_losses_triton", tmp_path, "80,90,100", dtype, widths, functions, "with_ids,without_ids")
    )
