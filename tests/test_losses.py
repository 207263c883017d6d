"""The losses: equal to the papers' formulas, invariant where they must be, exact in every precision."""

import math

import pytest
import torch

from contrastive.losses import info_nce_queue, nt_xent
from tests import reference

TEMPERATURES = [0.5, 0.07, 0.01]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(num_images: int = 12, width: int = 8, noise: float = 0.3, num_views: int = 2) -> torch.Tensor:
    """Views [V, B, P] that resemble each other, as after some training: the positive wins, which is the hard case."""
    return random(num_images, width)[None] + noise * random(num_views, num_images, width, seed=1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("num_views", [2, 3])
def test_nt_xent_equals_algorithm_1_of_the_paper(temperature: float, num_views: int) -> None:
    views = pairs(num_views=num_views)
    expected = reference.nt_xent(views.tolist(), temperature)
    ours = nt_xent(views.flatten(0, 1), temperature=temperature, num_views=num_views)
    assert ours.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_info_nce_equals_equation_1_of_the_paper(temperature: float) -> None:
    (queries, keys), negatives = pairs(), random(30, 8, seed=2)
    expected = reference.info_nce(queries.tolist(), keys.tolist(), negatives.tolist(), temperature)
    assert info_nce_queue(queries, keys, negatives, temperature=temperature).item() == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float32_keeps_five_digits(temperature: float) -> None:
    views = pairs().float()
    expected = reference.nt_xent(views.tolist(), temperature)
    assert nt_xent(views.flatten(0, 1), temperature=temperature).item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    expected = reference.info_nce(*views.tolist(), views.flip(1)[0].tolist(), temperature)
    ours = info_nce_queue(*views, views.flip(1)[0], temperature=temperature)
    assert ours.item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_finite_and_right_at_temperature_0_01(dtype: torch.dtype) -> None:
    views = pairs().to(dtype)
    projections = views.flatten(0, 1).requires_grad_()
    negatives = random(30, 8, seed=2).to(dtype)
    for loss, expected in [
        (nt_xent(projections, temperature=0.01), reference.nt_xent(views.tolist(), 0.01)),
        (
            info_nce_queue(*projections.unflatten(0, (2, -1)), negatives, temperature=0.01),
            reference.info_nce(*views.tolist(), negatives.tolist(), 0.01),
        ),
    ]:
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        projections.grad = None
        loss.backward()
        assert projections.grad is not None
        assert projections.grad.isfinite().all()


def test_indistinguishable_images_cost_the_log_of_the_number_of_candidates() -> None:
    same = torch.ones(2 * 10, 4)
    assert nt_xent(same, temperature=0.1).item() == pytest.approx(math.log(2 * 10 - 1))
    loss = info_nce_queue(same, same, torch.ones(7, 4), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(1 + 7))


def test_only_directions_matter() -> None:
    projections = pairs().flatten(0, 1)
    torch.testing.assert_close(nt_xent(7 * projections, temperature=0.5), nt_xent(projections, temperature=0.5))


def test_the_order_of_the_images_does_not_matter() -> None:
    views = pairs()
    shuffled = views[:, torch.randperm(12, generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(
        nt_xent(shuffled.flatten(0, 1), temperature=0.1), nt_xent(views.flatten(0, 1), temperature=0.1)
    )


def test_autocast_does_not_touch_them() -> None:
    views = pairs().float()
    negatives = random(30, 8, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = (
            nt_xent(views.flatten(0, 1), temperature=0.05),
            info_nce_queue(*views, negatives, temperature=0.05),
        )
    assert under_autocast[0].equal(nt_xent(views.flatten(0, 1), temperature=0.05))
    assert under_autocast[1].equal(info_nce_queue(*views, negatives, temperature=0.05))


@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_gradients_equal_finite_differences(temperature: float) -> None:
    projections = pairs(num_images=4).flatten(0, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: nt_xent(z, temperature=temperature), projections)
    queries, keys = (x.clone().requires_grad_() for x in pairs(num_images=4))
    queue = torch.nn.functional.normalize(random(6, 8, seed=2), dim=1)
    assert torch.autograd.gradcheck(lambda q, k: info_nce_queue(q, k, queue, temperature=temperature), (queries, keys))


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_a_bad_temperature_says_what_is_usual(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature must be positive, got .*; SimCLR uses 0\.5"):
        nt_xent(torch.ones(4, 2), temperature=temperature)
    with pytest.raises(ValueError, match=r"temperature must be positive"):
        info_nce_queue(torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 2), temperature=temperature)


@pytest.mark.parametrize(("rows", "num_views"), [(5, 2), (4, 1), (8, 3)])
def test_rows_that_are_no_views_are_refused(rows: int, num_views: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} projections are not {num_views} >= 2 views of every image"):
        nt_xent(torch.ones(rows, 2), temperature=0.5, num_views=num_views)
