"""Vector-free L-BFGS against the textbook's recursion, BFGS' own formula, and SciPy's optimum."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.optimize

from phirt_train.curate.executor import Executor, Handle, InProcess
from phirt_train.curate.line_search import CURVATURE, SUFFICIENT_DECREASE, Trial, strong_wolfe
from phirt_train.curate.logistic import LogisticLoss, RowBlock, SparseBlock
from phirt_train.curate.minimize import DirectionRule, Iteration, Minimum, Stopping, minimize
from phirt_train.curate.two_loop import TwoLoopByPasses, TwoLoopOnDriver
from phirt_train.curate.vector_free import VectorFree, two_loop_coefficients
from phirt_train.curate.vectors import Floats, Vector, VectorSpace, feature_edges, tree_sum

if TYPE_CHECKING:
    from phirt_train.curate.ray_executor import RayExecutor

FEATURES, ROWS, ROW_BLOCKS, L2 = 60, 200, 3, 1e-3
_Rule = Callable[[VectorSpace, int], DirectionRule]


def _data() -> tuple[Floats, Floats]:
    """Rows and labels that no plane parts cleanly."""
    random = np.random.default_rng(7)
    rows = np.where(random.random((ROWS, FEATURES)) < 0.2, random.normal(size=(ROWS, FEATURES)), 0)
    rows = rows.astype(np.float32).astype(np.float64)
    labels = np.where(rows @ random.normal(size=FEATURES) + random.normal(size=ROWS) > 0, 1.0, -1.0)
    return rows, labels


def _problem(executor: Executor, blocks: int = 4) -> tuple[VectorSpace, LogisticLoss]:
    rows, labels = _data()
    edges = feature_edges(FEATURES, blocks)
    space = VectorSpace(executor, edges)
    found = []
    for start, stop in itertools.pairwise(feature_edges(ROWS, ROW_BLOCKS)):
        sparse = tuple(
            executor.submit(_sparse, rows[start:stop, first:last])[0]
            for first, last in itertools.pairwise(edges)
        )
        targets = np.stack([labels[start:stop], np.ones(stop - start)])
        found.append(RowBlock(sparse, executor.submit(_same, targets)[0]))
    return space, LogisticLoss(space, found, L2, ROWS)


def _sparse(dense: Floats) -> SparseBlock:
    rows, columns = np.nonzero(dense)
    values = dense[rows, columns].astype(np.float32)
    return SparseBlock(dense.shape, rows.astype(np.int32), columns.astype(np.int32), values)


def _same(value: Floats) -> Floats:
    return value


def _whole(executor: Executor, vector: Vector) -> Floats:
    return np.concatenate(executor.collect(vector.blocks))


def _run(
    rule: _Rule, history: int, iterations: int
) -> tuple[Minimum, list[Floats], VectorSpace, DirectionRule]:
    executor = InProcess()
    space, loss = _problem(executor)
    made = rule(space, history)
    iterates: list[Floats] = []

    def watch(iteration: Iteration, weights: Vector) -> None:
        iterates.append(_whole(executor, weights))

    found = minimize(loss, space, made, space.zeros(), Stopping(iterations, 0.0, 0.0), watch)
    return found, iterates, space, made


def _dense_loss(weights: Floats) -> tuple[float, Floats]:
    rows, labels = _data()
    signed = labels * (rows @ weights)
    value = float(np.mean(np.log1p(np.exp(-signed))) + 0.5 * L2 * weights @ weights)
    return value, -rows.T @ (labels / (1 + np.exp(signed))) / ROWS + L2 * weights


@pytest.mark.parametrize("history", [1, 2, 5, 10])
@pytest.mark.parametrize("naive", [TwoLoopByPasses, TwoLoopOnDriver])
def test_its_iterates_are_those_of_the_two_loops(history: int, naive: _Rule) -> None:
    _, iterates, *_ = _run(VectorFree, history, 25)
    _, expected, *_ = _run(naive, history, 25)
    assert len(iterates) == len(expected) == 25
    assert max(float(np.max(np.abs(a - b))) for a, b in zip(iterates, expected, strict=True)) < 1e-10


def test_it_ends_at_scipys_optimum() -> None:
    found, iterates, *_ = _run(VectorFree, 7, 200)
    best = scipy.optimize.minimize(
        _dense_loss, np.zeros(FEATURES), jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 2000}
    )
    assert found.value == pytest.approx(best.fun, abs=1e-12)
    assert np.max(np.abs(iterates[-1] - best.x)) < 1e-5


@pytest.mark.parametrize("history", [1, 3, 7])
def test_a_full_history_asks_for_6m_products_an_iteration(history: int) -> None:
    _, iterates, space, rule = _run(VectorFree, history, 20)
    assert isinstance(rule, VectorFree) and rule.skipped == 0
    pairs = [min(number, history) for number in range(len(rule.products))]
    assert rule.products == [1 if count == 0 else 6 * count for count in pairs]
    trials = space.work.products - sum(rule.products)
    assert len(iterates) <= trials <= 3 * len(iterates)  # one more for each trial of the line search


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_the_coefficients_are_bfgs_updates_of_the_scaled_identity(count: int) -> None:
    """Against the inverse Hessian itself, updated pair by pair (Nocedal and Wright, 7.16 and 7.20)."""
    random = np.random.default_rng(count)
    size = 12
    curvature = random.normal(size=(size, size))
    steps = random.normal(size=(count, size))
    changes = steps @ (curvature @ curvature.T + np.eye(size))
    gradient = random.normal(size=size)
    inverse = np.eye(size)
    if count:
        inverse *= (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for s, y in zip(steps, changes, strict=True):
        v = np.eye(size) - np.outer(y, s) / (s @ y)
        inverse = v.T @ inverse @ v + np.outer(s, s) / (s @ y)
    basis = np.concatenate([steps, changes, gradient[None]])
    direction = two_loop_coefficients(basis @ basis.T) @ basis
    np.testing.assert_allclose(direction, -inverse @ gradient, rtol=1e-10, atol=1e-10)


def test_a_pair_without_curvature_is_left_out() -> None:
    """The pair before it stays, the oldest too; the direction is as if it had never been learnt."""
    random = np.random.default_rng(3)
    space = VectorSpace(InProcess(), (0, 5, 9))

    def vector(values: Floats) -> Vector:
        return Vector((Handle(values[:5]), Handle(values[5:])))

    good = [(one, 2 * one) for one in random.normal(size=(2, 9))]
    flat = random.normal(size=9)
    gradient = random.normal(size=9)
    rules = VectorFree(space, 2), VectorFree(space, 2)
    for rule in rules:
        for step, change in good:
            rule.learn(vector(step), vector(change))
            rule.direction(vector(random.normal(size=9)))
    rules[0].learn(vector(flat), vector(-flat))
    found, expected = (rule.direction(vector(gradient)) for rule in rules)
    assert (rules[0].skipped, rules[1].skipped) == (1, 0)
    np.testing.assert_array_equal(
        _whole(space.executor, found.vector), _whole(space.executor, expected.vector)
    )


def test_the_gradient_is_the_dense_formulas() -> None:
    executor = InProcess()
    space, loss = _problem(executor)
    weights = np.random.default_rng(1).normal(size=FEATURES)
    blocks = [Handle(weights[first:last]) for first, last in itertools.pairwise(space.edges)]
    value, gradient = loss.evaluate(Vector(tuple(blocks)))
    expected_value, expected = _dense_loss(weights)
    assert value == pytest.approx(expected_value, rel=1e-13)
    np.testing.assert_allclose(_whole(executor, gradient), expected, rtol=1e-11, atol=1e-14)


def test_no_vector_passes_through_the_driver() -> None:
    """What is collected does not grow with the features; the baseline's does."""
    collected = {}
    for rule in (VectorFree, TwoLoopOnDriver):
        executor = InProcess()
        space, loss = _problem(executor)
        executor.traffic.collected_bytes = 0
        minimize(loss, space, rule(space, 5), space.zeros(), Stopping(10, 0.0, 0.0))
        collected[rule.__name__] = executor.traffic.collected_bytes
    products = sum([1, 6, 12, 18, 24, *[30] * 5]) + 11  # of 8 bytes, from each of 4 blocks, and a few trials
    assert collected["VectorFree"] < 4 * 8 * 2 * products
    vectors = 8 * FEATURES * (10 + 2 * 10)  # each gradient and each pair
    assert collected["TwoLoopOnDriver"] > vectors


def test_bits_do_not_depend_on_the_number_of_workers(four_workers: RayExecutor) -> None:
    def weights(executor: Executor) -> Floats:
        space, loss = _problem(executor, blocks=2)
        found = minimize(loss, space, VectorFree(space, 4), space.zeros(), Stopping(2))
        return _whole(executor, found.weights)

    expected = weights(InProcess())
    for workers in (1, 2, 4):
        np.testing.assert_array_equal(weights(four_workers.limited(workers)), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 64, 1001])
def test_tree_sum(count: int) -> None:
    values = np.arange(count, dtype=np.float64)[:, None] * [1.0, 2.0]
    np.testing.assert_array_equal(tree_sum(values), [count * (count - 1) / 2, count * (count - 1.0)])


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize(
    "function",
    [
        lambda a: ((a - 3) ** 2, 2 * (a - 3)),
        lambda a: (-a / (a * a + 2), (a * a - 2) / (a * a + 2) ** 2),  # Moré and Thuente's first
        lambda a: (np.cosh(a - 1), np.sinh(a - 1)),
    ],
)
def test_the_line_search_fulfils_the_strong_wolfe_conditions(
    first: float, function: Callable[[float], tuple[float, float]]
) -> None:
    start = Trial(0.0, *function(0.0))
    found = strong_wolfe(lambda step: Trial(step, *function(step)), start, first)
    assert found is not None
    assert found.value <= start.value + SUFFICIENT_DECREASE * found.step * start.slope
    assert abs(found.slope) <= CURVATURE * abs(start.slope)


def test_the_line_search_backs_off_from_what_is_no_number() -> None:
    def function(step: float) -> Trial:
        return Trial(step, float("nan"), 0.0) if step > 2 else Trial(step, (step - 1) ** 2, 2 * (step - 1))

    found = strong_wolfe(function, function(0.0), 50.0)
    assert found is not None and found.step <= 2


def test_nothing_is_found_where_the_function_only_rises() -> None:
    assert strong_wolfe(lambda step: Trial(step, 2.0 + step, 1.0), Trial(0.0, 1.0, -1.0), 1.0) is None
