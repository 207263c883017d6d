"""L-BFGS for several smooth problems of one shape at once, each with its own step length and its own end."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

MEMORY = 10  # step pairs remembered, the usual choice (Nocedal & Wright 2006, section 7.2)
SUFFICIENT_DECREASE = 1e-4  # Nocedal & Wright 2006, section 3.1
MAX_HALVINGS = 20
# Iterations without a smaller objective or gradient after which rounding has ended the descent. Gradients rise for some
# before they fall: with 5, the weakest of 20 strengths went on in float64 for nothing, half of the whole time again.
STALLED_AFTER = 15
REFRESHED_AT = frozenset(4**power for power in range(2, 16))  # iterations: 16, 64, 256, ...

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Curvature = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Minimum:
    """Where the descent ended, for each of S problems.

    Attributes:
        point: [S, C, K].
        value: The objective there, float64 [S].
        gradient_norm: Euclidean norm of the gradient there, [S].
        iterations: [S].
        converged: Whether the bound on the excess fell to ``tolerance`` times the value, [S].
    """

    point: Float[Tensor, "S C K"]
    value: Float[Tensor, " S"]
    gradient_norm: Float[Tensor, " S"]
    iterations: Int64[Tensor, " S"]
    converged: Bool[Tensor, " S"]


def minimise(
    evaluate: Evaluate,
    *,
    start: Float[Tensor, "S C K"],
    curvature: Float[Tensor, "S 1 K"],
    curvature_at: Curvature | None = None,
    convexity: Float[Tensor, " S"],
    tolerance: float,
    max_iterations: int,
) -> Minimum:
    """Minimise S problems together; a problem that has ended is no longer computed.

    Args:
        evaluate: ``evaluate(points [A, C, K], active)`` gives values, float64 [A], and gradients [A, C, K] of the
            problems whose numbers are in ``active``, int64 [A].
        start: Where to start.
        curvature: A diagonal estimate of each Hessian, > 0 where the gradient is not 0.
        curvature_at: ``curvature_at(points [A, C, K], active)`` gives a better one [A, 1, K], for the points that have
            been reached. Asked for a few times: where the Hessian changes on the way by orders of magnitude, as a
            logistic one does once classes come apart, the first estimate makes thousands of iterations of a hundred.
        convexity: Constants m of strong convexity, > 0: no value lies more than |gradient|^2 / (2 m) above its minimum
            (Boyd & Vandenberghe 2004, equation 9.9).
        tolerance: A problem ends once that bound is this fraction of its value, which must not be negative.
        max_iterations: When every problem ends.
    """
    active = torch.arange(len(start), device=start.device)
    state = _Descent(start, *evaluate(start, active), active, curvature.clamp(min=torch.finfo(start.dtype).tiny))
    zero = torch.zeros_like(active)
    ended = Minimum(start.clone(), state.value.clone(), _norm(state.gradient), iterations=zero, converged=zero.bool())
    for iteration in range(max_iterations + 1):
        norm = _norm(state.gradient)
        excess = norm.double() ** 2 / (2 * convexity[state.active].double())
        reached = excess <= tolerance * state.value
        done = reached | (state.stalled >= STALLED_AFTER) | (iteration == max_iterations)
        if bool(done.any()):
            which = state.active[done]
            ended.point[which], ended.value[which] = state.point[done], state.value[done]
            ended.gradient_norm[which], ended.converged[which] = norm[done], reached[done]
            ended.iterations[which] = iteration
            if bool(done.all()):
                break
            state.keep(~done)
        if curvature_at is not None and iteration in REFRESHED_AT:
            state.inverse_curvature = 1 / curvature_at(state.point, state.active)
        state.advance(evaluate)
    return ended


class _Descent:
    """The problems still running: where they are, and what they remember of their curvature."""

    def __init__(self, point: Tensor, value: Tensor, gradient: Tensor, active: Tensor, curvature: Tensor) -> None:
        self.point, self.value, self.gradient = point, value, gradient
        self.active = active
        self.inverse_curvature = 1 / curvature
        self.stalled = torch.zeros_like(active)
        self.smallest_norm = _norm(gradient)
        self.steps: list[Tensor] = []
        self.changes: list[Tensor] = []  # of the gradient, over each step
        self.inverse_products: list[Tensor] = []  # 1 / <step, change>; 0 where a pair must not be used

    def keep(self, running: Tensor) -> None:
        """Forget the problems that have ended."""
        self.point, self.value, self.gradient = self.point[running], self.value[running], self.gradient[running]
        self.active, self.stalled = self.active[running], self.stalled[running]
        self.inverse_curvature, self.smallest_norm = self.inverse_curvature[running], self.smallest_norm[running]
        self.steps = [step[running] for step in self.steps]
        self.changes = [change[running] for change in self.changes]
        self.inverse_products = [product[running] for product in self.inverse_products]

    def advance(self, evaluate: Evaluate) -> None:
        """One step of every running problem."""
        direction = self._direction()
        slope = _dot(self.gradient, direction)
        # Rounding can turn the two-loop direction uphill; the preconditioned gradient never is.
        uphill = (slope >= 0)[:, None, None]
        direction = torch.where(uphill, -self.gradient * self.inverse_curvature, direction)
        slope = _dot(self.gradient, direction)
        point, value, gradient = self._line_search(evaluate, direction, slope)
        self._remember(point - self.point, gradient - self.gradient)
        rounding = 4 * torch.finfo(point.dtype).eps * value.abs()
        norm = _norm(gradient)
        progress = (self.value - value > rounding) | (norm < self.smallest_norm)
        self.stalled = torch.where(progress, 0, self.stalled + 1)
        self.smallest_norm = torch.minimum(self.smallest_norm, norm)
        self.point, self.value, self.gradient = point, value, gradient

    def _direction(self) -> Tensor:
        """Nocedal & Wright 2006, algorithm 7.4, from the diagonal scaled to the latest pair (equation 7.20)."""
        direction = -self.gradient
        coefficients = []
        for step, change, inverse in zip(
            reversed(self.steps), reversed(self.changes), reversed(self.inverse_products), strict=True
        ):
            coefficient = inverse * _dot(step, direction)
            direction = direction - coefficient[:, None, None] * change
            coefficients.append(coefficient)
        direction = direction * self.inverse_curvature
        if self.steps:
            change = self.changes[-1]
            curvature = self.inverse_products[-1] * _dot(change, change * self.inverse_curvature)
            direction = direction / torch.where(curvature > 0, curvature, 1)[:, None, None]
        for step, change, inverse, coefficient in zip(
            self.steps, self.changes, self.inverse_products, reversed(coefficients), strict=True
        ):
            direction = direction + (coefficient - inverse * _dot(change, direction))[:, None, None] * step
        return direction

    def _line_search(self, evaluate: Evaluate, direction: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step back from length 1, each problem by itself, to where the objective has fallen enough."""
        length = torch.ones_like(slope)
        point = self.point + direction
        value, gradient = evaluate(point, self.active)
        for _ in range(MAX_HALVINGS):
            short = ~self._acceptable(length, slope, value, _dot(gradient, direction))
            if not bool(short.any()):
                break
            # The lowest point of the parabola through the value and slope at 0 and the value at this length.
            excess = (value - self.value - length.double() * slope.double()).clamp(min=1e-300)
            lowest = (-slope.double() * length.double() ** 2 / (2 * excess)).to(length.dtype)
            shorter = torch.minimum(torch.maximum(lowest, length / 10), length / 2)
            length = torch.where(short, shorter, length)
            point[short] = self.point[short] + length[short, None, None] * direction[short]
            value[short], gradient[short] = evaluate(point[short], self.active[short])
        return point, value, gradient

    def _acceptable(self, length: Tensor, slope: Tensor, value: Tensor, new_slope: Tensor) -> Tensor:
        """Armijo's condition; where rounding hides the decrease, the slope's (Hager & Zhang 2005, equation 4.1)."""
        armijo = value <= self.value + SUFFICIENT_DECREASE * length * slope
        noise = 8 * torch.finfo(length.dtype).eps * self.value.abs()
        flat = (value <= self.value + noise) & (new_slope <= (2 * SUFFICIENT_DECREASE - 1) * slope)
        return armijo | flat

    def _remember(self, step: Tensor, change: Tensor) -> None:
        product = _dot(step, change)
        curved = product > 1e-10 * _norm(step) * _norm(change)
        self.steps.append(step)
        self.changes.append(change)
        self.inverse_products.append(torch.where(curved, 1 / product, 0))
        if len(self.steps) > MEMORY:
            del self.steps[0], self.changes[0], self.inverse_products[0]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((1, 2))


def _norm(tensor: Tensor) -> Tensor:
    return tensor.square().sum((1, 2)).sqrt()
