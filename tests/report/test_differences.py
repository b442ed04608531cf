"""Paired bootstrap over seeds within cells, against exact distributions and moments."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from vld.report import difference, differences_table, read_results, series_of
from vld.report.differences import widened
from vld.report.grid import Grid
from vld.report.series import Series
from vld.study.planned import PlannedRun

SEEDS = ((0, 0), (1, 0), (2, 0))


def grid(accuracy: np.ndarray, domains: str = "abcd", repeats: tuple = SEEDS) -> Grid:
    pairs = tuple((1e-3 / (i + 1), 1e-4) for i in range(accuracy.shape[1]))
    return Grid(tuple(domains[: len(accuracy)]), pairs, repeats[: accuracy.shape[2]], accuracy, accuracy)


def test_what_differs_by_a_constant_has_an_interval_of_no_width() -> None:
    random = np.random.default_rng(1)
    b = random.random((4, 6, 3))
    row = difference(grid(b + 0.02), grid(b))
    assert row is not None
    assert row["ood"] == pytest.approx(2.0)
    assert row["ood_low"] == pytest.approx(2.0)
    assert row["ood_high"] == pytest.approx(2.0)
    assert (row["cells"], row["repeats"]) == (24, 3)


def test_one_cell_of_two_seeds_has_the_exact_distribution() -> None:
    """Its resampled mean is one of the two differences with probability 1/4 each, their mean with 1/2; for one degree of freedom
    the interval is that wider: the classical one of two values."""
    a, b = np.array([[[0.6, 0.9]]]), np.array([[[0.5, 0.5]]])
    row = difference(grid(a), grid(b))
    assert row is not None
    wider = math.sqrt(2) * 12.7062 / 1.959964
    assert (row["ood_low"], row["ood"], row["ood_high"]) == pytest.approx((25 - 15 * wider, 25.0, 25 + 15 * wider))


def test_one_plus_minus_says_whether_zero_is_in_the_interval() -> None:
    """Also where resampled means are skewed: it is as wide on both sides as on the wider one."""
    random = np.random.default_rng(6)
    for _ in range(10):
        differences = random.exponential(0.01, (1, 2, 4)) - 0.004
        a, b = (grid(0.5 + added, repeats=(*SEEDS, (3, 0))) for added in (differences, 0 * differences))
        row = difference(a, b)
        assert row is not None
        half = (row["ood_high"] - row["ood_low"]) / 2
        assert (row["ood_low"], row["ood_high"]) == pytest.approx((row["ood"] - half, row["ood"] + half))
        resampled = [[np.mean(some) for some in itertools.product(cell, repeat=4)] for cell in 100 * differences[0]]
        means = np.add.outer(*resampled).ravel() / 2  # all of them
        ends = np.quantile(means, [0.025, 0.975])
        assert half == pytest.approx(widened(2, 4) * max(abs(ends - row["ood"])), rel=0.1)


def test_the_interval_s_width_is_that_of_resampled_seeds_within_cells() -> None:
    """Many cells: nearly normal, with the sum of the cells' own variances (ddof=0) over seeds, whatever differs between cells."""
    random = np.random.default_rng(2)
    differences = random.normal(0, 0.02, (4, 6, 3)) + random.normal(0, 0.3, (4, 6, 1))
    b = random.random((4, 6, 3))
    row = difference(grid(b + differences), grid(b), draws=40_000)
    assert row is not None
    deviation = math.sqrt((differences.var(2) / 3).sum()) / 24
    classical = 100 * 2 * 2.0106 * deviation * math.sqrt(3 / 2)  # t at 48 degrees of freedom, ddof=1
    assert row["ood_high"] - row["ood_low"] == pytest.approx(classical, rel=0.04)
    assert row["ood"] == pytest.approx(100 * differences.mean())


@pytest.mark.parametrize(("cells", "seeds"), [(1, 3), (4, 3), (24, 2), (24, 3)])
def test_of_a_hundred_intervals_about_ninety_five_hold_the_truth(cells: int, seeds: int) -> None:
    """Where there is no difference, few sentences claim one."""
    random = np.random.default_rng(5)
    wrong, trials = 0, 300
    b = np.full((1, cells, seeds), 0.5)
    for _ in range(trials):
        row = difference(grid(b + random.normal(0, 0.01, b.shape)), grid(b), draws=400)
        assert row is not None
        wrong += not row["ood_low"] <= 0 <= row["ood_high"]
    assert wrong / trials < 0.11


@pytest.mark.parametrize(("cells", "repeats", "t"), [(1, 2, 12.706), (2, 3, 2.776), (4, 4, 2.179), (24, 3, 2.011)])
def test_intervals_of_few_seeds_are_widened_by_student_s_t(cells: int, repeats: int, t: float) -> None:
    assert widened(cells, repeats) == pytest.approx(math.sqrt(repeats / (repeats - 1)) * t / 1.959964, rel=1e-3)


def test_pairing_removes_what_a_seed_does_to_both() -> None:
    random = np.random.default_rng(3)
    shared = random.normal(0, 0.1, (4, 6, 3))
    row = difference(grid(0.7 + shared), grid(0.6 + shared))
    assert row is not None
    assert row["ood_high"] - row["ood_low"] < 1e-9


def test_only_what_both_have_is_compared() -> None:
    a, b = np.full((2, 2, 3), 0.7), np.full((2, 2, 3), 0.6)
    a[0, 0, 1] = np.nan
    b[0, 1] = np.nan
    row = difference(grid(a), grid(b))
    assert row is not None
    assert (row["cells"], row["repeats"]) == (3, 2)
    assert row["ood"] == pytest.approx(10.0)
    b[0, 0] = np.nan
    assert difference(grid(a), grid(b)) is None  # the first domain has no common cell
    assert difference(grid(a), grid(b, domains="xy")) is None


VARY, WD = None, 1e-4


@pytest.mark.parametrize(
    ("pairs", "repeats", "ood"),
    [
        ([(5e-4, WD)], [(VARY, 0)], 90 - 60),  # a soup over seeds, at one of two learning rates
        ([(VARY, WD)], [(0, 0), (1, 0)], 90 - 45),  # one over learning rates, of two of three seeds
        ([(VARY, VARY)], [(VARY, 0)], 90 - 50),
        ([(3e-4, WD)], [(VARY, 0)], None),  # of runs that there are not
    ],
)
def test_a_combination_is_compared_with_runs_like_its_members(pairs: list, repeats: list, ood: float | None) -> None:
    runs = np.array([[[0.3, 0.3, 0.6], [0.6, 0.6, 0.6]]])
    soups = np.full((1, len(pairs), len(repeats)), 0.9)
    both = (
        Grid(("a",), tuple(pairs), tuple(repeats), soups, soups),
        Grid(("a",), ((1e-3, WD), (5e-4, WD)), SEEDS, runs, runs),
    )
    found = difference(*both)
    assert (found and found["ood"]) == (None if ood is None else pytest.approx(ood))


def test_one_seed_has_no_interval() -> None:
    row = difference(grid(np.full((2, 2, 1), 0.7)), grid(np.full((2, 2, 1), 0.6)))
    assert row is not None
    assert row["ood"] == pytest.approx(10.0)
    assert math.isnan(row["ood_low"])


def test_the_same_numbers_every_time() -> None:
    random = np.random.default_rng(4)
    a, b = grid(random.random((4, 6, 3))), grid(random.random((4, 6, 3)))
    assert difference(a, b) == difference(a, b)


@pytest.fixture(scope="module")
def pacs(figure2: tuple[Path, list[PlannedRun]]) -> list[Series]:
    return [one for one in series_of(read_results(figure2[0])) if one.dataset == "pacs"]


def test_the_report_writes_the_study_s_claim(pacs: list[Series]) -> None:
    table = differences_table(pacs)
    by_name = {(one.method, one.dropout): one for one in pacs}
    row = table[(table.a == "ERM, dropout 0.9") & (table.b == "ensemble, dropout 0")].iloc[0]
    erm, ensemble = by_name["erm", 0.9].grid, by_name["ensemble", 0.0].grid
    assert row.ood == pytest.approx(100 * (erm.ood_acc - ensemble.ood_acc).mean())
    half = (row.ood_high - row.ood_low) / 2
    assert row.sentence == (
        "PACS: ERM with dropout 0.9 beats the ensemble without dropout"
        f" by {row.ood:.1f} ± {half:.1f} points o.o.d. (95 %, 3 seeds)."
    )
    assert row.headline
    of_runs = table[(table.a == "ERM, dropout 0.9") & (table.b == "ensemble of runs of 18, dropout 0")].iloc[0]
    assert "is above the ensemble of runs of 18 without dropout by" in of_runs.sentence
    assert "no interval" in of_runs.sentence
    along = table[(table.a == "ensemble, dropout 0.9") & (table.b == "ERM, dropout 0.9")].iloc[0]
    assert not along.headline
    assert len(table) == 5 + 4 + 4  # ERM with dropout against five; four others against ERM, at either rate


def test_a_sentence_tells_the_seeds_and_pairs_that_it_is_of(pacs: list[Series]) -> None:
    from dataclasses import replace

    plain, dropout = sorted((one for one in pacs if one.method == "erm"), key=lambda one: one.dropout or 0)
    b = np.random.default_rng(0).random((4, 2, 3))
    for a, said in (
        (b, "95 %, 3 seeds)."),
        (b[:, :, :2], "95 %, 2 seeds). Over the (lr, weight decay) pairs and seeds that both have."),
        (b[:, :1], "95 %, 3 seeds). Over the (lr, weight decay) pairs and seeds that both have."),
    ):
        for one, other in ((a, b), (b, a)):
            table = differences_table([replace(plain, grid=grid(one)), replace(dropout, grid=grid(other))])
            assert table.sentence[0].endswith(said)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((0.01, 0.02, 0.03), "beats"),
        ((-0.01, -0.02, -0.03), "is beaten by"),
        ((-0.02, 0.01, 0.02), "is not distinguishable from"),
        ((0.02,), "is above"),
        ((0.0,), "is level with"),
        ((-0.0004,), "is level with"),
    ],
)
def test_a_sentence_claims_no_more_than_its_interval(
    differences: tuple[float, ...], said: str, pacs: list[Series]
) -> None:
    from dataclasses import replace

    series = [one for one in pacs if one.method == "erm"]
    plain, dropout = sorted(series, key=lambda one: one.dropout or 0)
    b = np.full((4, 6, len(differences)), 0.5)
    table = differences_table([replace(plain, grid=grid(b)), replace(dropout, grid=grid(b + np.array(differences)))])
    assert len(table) == 1
    assert f" {said} " in table.sentence[0]
