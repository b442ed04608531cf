"""Each study's figure: which series it shows, the points it is drawn from, and the same look for a method everywhere."""

import itertools
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report_store import study_runs, write_combination, write_combinations, write_run

from vld.config.names import METHOD_COLORS, METHOD_MARKERS, series_color
from vld.machine.terminal import Terminal
from vld.report import (
    cloud,
    clouds_figure,
    learning_curves,
    read_store,
    results_table,
    series_of,
)
from vld.report.build import make_report
from vld.report.figures import connectivity_figure
from vld.report.kinds import KINDS, ReportFigure, drawn_figures
from vld.report.points import connectivity_points
from vld.report.series import Series
from vld.report.summary import sweep_table
from vld.report.write import MARKS
from vld.runs.results import read_all
from vld.study.planned import PlannedRun
from vld.study.typed_settings import with_values

ONE_SEED = ("seed=0,1", "optim.weight_decay=1e-4")
SHARED = {
    "figure3": ("figure2",),
    "figure9": ("figure2", "figure3"),
    "figure10": ("figure2", "figure3"),
    "figure6": ("figure2",),
    "figure7": ("figure2",),
    "figure8": ("figure2", "figure6"),
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every study, with two seeds and one weight decay, on two datasets each."""
    output_dir = tmp_path_factory.mktemp("everything")
    for study, datasets in (
        ("figure2", "pacs,vlcs"),
        ("figure3", "pacs,vlcs"),
        ("figure4", "domain_net"),
        ("figure5", "vlcs"),
        ("figure6", "pacs,vlcs"),
        ("figure8", "pacs,vlcs"),
        ("figure9", "vlcs"),
    ):
        narrow = ["seed=0,1", "optim.weight_decay=1e-2"] if study == "figure9" else ONE_SEED
        runs = study_runs(study, *narrow, f"dataset={datasets}")
        for run in runs:
            write_run(output_dir, run, curves=run.config.seed == 0)
        if study == "figure2":
            write_combinations(output_dir, runs)
    return output_dir


@cache
def figures_of(output_dir: Path, study: str) -> tuple[list[ReportFigure], list[Series]]:
    wanted: list[PlannedRun] = []
    for name in (study, *SHARED.get(study, ())):
        words = ["seed=0,1", "optim.weight_decay=1e-2"] if name in ("figure9", "figure10") else list(ONE_SEED)
        if study not in ("figure4", "figure5"):
            words.append("dataset=vlcs" if study in ("figure9", "figure10") else "dataset=pacs,vlcs")
        wanted += study_runs(name, *words)
    store = read_store(output_dir, wanted)
    series = series_of(store.results, store.expected)
    assert all(one.grid.complete for one in series)
    return list(drawn_figures(series, store.results, study)), series


def labels(figure: Figure) -> set[str]:
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


WITH_CURVES = ("figure3", "figure4", "figure5", "figure9", "figure10")
FOUR = {f"ERM, dropout {rate}" for rate in ("0", "0.5", "0.9", "0.95")}


@pytest.mark.parametrize(
    ("study", "shown", "panels"),
    [
        (
            "figure2",
            {
                "ERM, dropout 0",
                "weight averaging, dropout 0",
                "ensemble, dropout 0",
                "model soup of 4, dropout 0",
                "ensemble of runs of 4, dropout 0",
                "ERM, dropout 0.9",
            },
            ["PACS", "VLCS"],
        ),
        ("figure3", FOUR, ["PACS", "VLCS"]),
        ("figure4", FOUR, ["DomainNet"]),
        ("figure5", FOUR, ["VLCS"]),
        (
            "figure6",
            {f"ERM, dropout {rate}, last layer lr × {factor}" for rate in ("0", "0.9") for factor in ("1", "10")},
            ["PACS", "VLCS"],
        ),
        (
            "figure7",
            {
                "ERM, dropout 0.9",
                "weight averaging, dropout 0.9",
                "ensemble, dropout 0.9",
                "model soup of 4, dropout 0.9",
                "ensemble of runs of 4, dropout 0.9",
            },
            ["PACS", "VLCS"],
        ),
        (
            "figure8",
            {
                "ERM, dropout 0, backbone resnet50, last layer lr × 1",
                "ERM, dropout 0, backbone resnet50_v1, last layer lr × 1",
                "weight averaging, dropout 0.9, backbone resnet50, last layer lr × 10",
                "weight averaging, dropout 0.9, backbone resnet50_v1, last layer lr × 10",
            },
            ["PACS", "VLCS"],
        ),
        *(
            (
                study,
                {
                    f"ERM, dropout {rate}, backbone tuning {tuning}"
                    for rate in ("0", "0.5", "0.9", "0.95")
                    for tuning in ("full", "linear")
                },
                ["VLCS"],
            )
            for study in ("figure9", "figure10")
        ),
    ],
)
def test_a_study_s_figure_shows_its_series(study: str, shown: set[str], panels: list[str], everything: Path) -> None:
    drawn, _ = figures_of(everything, study)
    assert [one.name for one in drawn] == [
        study,
        *([f"{study}_curves"] if study in WITH_CURVES else []),
    ]
    assert labels(drawn[0].figure) == shown
    assert [axes.get_title() for axes in drawn[0].figure.axes] == panels
    assert set(drawn[0].points.series) == shown


def test_the_points_are_the_clouds_and_their_means(everything: Path) -> None:
    [drawn], series = figures_of(everything, "figure2")
    compared = 0
    for one in series:
        mine = drawn.points[(drawn.points.dataset == one.dataset) & (drawn.points.series == one.label)]
        if mine.empty:
            assert one.dropout == 0.9
            assert one.method != "erm"
            continue
        dots, [mean] = mine[mine.kind == "cloud"], mine[mine.kind == "mean"].to_dict("records")
        assert len(dots) == (0 if one.combined else 2**4)
        row = results_table([one]).iloc[0]
        assert (mean["iid"], mean["ood"]) == pytest.approx((row.iid, row.ood))
        if len(dots):
            assert sorted(dots.ood) == pytest.approx(sorted(100 * cloud(one.grid).ood_acc))
        compared += 1
    assert compared == 2 * 6
    axes = drawn.figure.axes[0]
    [marked] = [line for line in axes.get_lines() if line.get_label() == "ERM, dropout 0.9"]
    row = drawn.points[(drawn.points.series == "ERM, dropout 0.9") & (drawn.points.kind == "mean")].iloc[0]
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == pytest.approx((row.iid, row.ood))  # type: ignore[index]


def test_a_method_looks_the_same_in_every_figure(everything: Path) -> None:
    seen: dict[tuple[str, str], set[str]] = {}
    for study in ("figure2", "figure3", "figure6", "figure7", "figure8"):
        drawn, _ = figures_of(everything, study)
        for line in drawn[0].figure.axes[0].get_lines():
            name, dropout = str(line.get_label()).split(", ")[:2]
            color = line.get_markerfacecolor()
            color = to_hex(line.get_markeredgecolor() if color == "white" else color)  # type: ignore[arg-type]
            rate = dropout if name == "ERM" else "any"
            seen.setdefault((name.split(" of 4")[0], rate), set()).add(f"{color.upper()} {line.get_marker()}")
    assert {len(looks) for looks in seen.values()} == {1}
    assert seen["weight averaging", "any"] == {f"{METHOD_COLORS['weight_averaging']} s"}
    assert seen["ensemble of runs", "any"] == {f"{METHOD_COLORS['ensemble_of_runs']} ^"}
    assert seen["model soup", "any"] == {f"{METHOD_COLORS['model_soup']} *"}
    assert len({look for looks in seen.values() for look in looks}) == len(seen)


def test_colours_of_methods_and_rates_are_told_apart() -> None:
    """By a person with protanopia or deuteranopia too: distances after the usual simulation matrices (Machado et al. 2009)."""
    methods = [method for method in METHOD_COLORS if method != "connectivity"]  # no series of a figure
    colors = [*(METHOD_COLORS[method] for method in methods), *(series_color("erm", rate) for rate in (0.5, 0.9, 0.95))]
    matrices = {
        "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        "protanopia": (
            (0.152286, 1.052583, -0.204868),
            (0.114503, 0.786281, 0.099216),
            (-0.003882, -0.048116, 1.051998),
        ),
        "deuteranopia": (
            (0.367322, 0.860646, -0.227968),
            (0.280085, 0.672501, 0.047413),
            (-0.011820, 0.042940, 0.968881),
        ),
    }
    markers = [*(METHOD_MARKERS[method] for method in methods), "o", "o", "o"]
    for name, matrix in matrices.items():
        seen = []
        for color in colors:
            rgb = [(int(color[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
            seen.append([max(0.0, sum(m * c for m, c in zip(row, rgb, strict=True))) ** (1 / 2.2) for row in matrix])
        for i, a in enumerate(seen):
            for j, b in enumerate(seen[:i]):
                if markers[i] == markers[j]:
                    assert math.dist(a, b) > 0.2, (name, colors[i], colors[j])
                else:
                    assert math.dist(a, b) > 0.08, (name, colors[i], colors[j])


def test_without_a_study_everything_is_drawn_that_the_results_allow(everything: Path) -> None:
    store = read_store(everything)
    series = series_of(store.results)
    drawn = list(drawn_figures(series, store.results, None))
    names = [one.name for one in drawn]
    assert len(names) == len(set(names))
    assert {name.split("-")[0] for name in names} == {kind.name for kind in KINDS if kind.name != "placement"} | {
        "members"
    }
    # What no one figure can show is apart: other steps, from scratch, another backbone, another last layer's rate.
    titles = [one.title for one in drawn if one.name.startswith("dropout_rates")]
    assert len(titles) == 5
    assert any("steps 30000" in title for title in titles)
    assert any("resnet50_scratch" in title for title in titles)
    assert any("tuning linear" in title for title in titles)
    assert any("tuning full" in title for title in titles)
    members = next(one for one in drawn if one.name == "members")
    assert sorted(members.points.members.unique()) == [1, 2, 3, 4]
    last = members.points[members.points.members == 4]
    ensembles = [one for one in series if one.method == "ensemble_of_runs"]
    assert len(last) == len(ensembles) == 4
    for one in ensembles:
        row = last[(last.dataset == one.dataset) & (last.dropout == one.dropout)].iloc[0]
        assert row.ood == pytest.approx(
            100 * one.grid.ood_acc.mean() - 0.75
        )  # what the store wrote: less 0.03 / members


def test_one_rate_or_one_method_draws_no_comparison(tmp_path: Path) -> None:
    for run in study_runs("figure2", *ONE_SEED, "dataset=pacs", "dropout=0.9"):
        write_run(tmp_path, run)
    store = read_store(tmp_path)
    names = [one.name for one in drawn_figures(series_of(store.results), store.results, None)]
    assert names == ["averaging", "domains"]


def test_places_and_schedules_of_dropout_are_one_figure(tmp_path: Path) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"dropout_schedule": "rising"},
        {"backbone.stage_dropout": [0.1], "backbone.stage_dropout_kind": "channel"},
    ]
    for run in study_runs("figure2", *ONE_SEED, "dataset=pacs", "dropout=0.9"):
        for change in changes:
            write_run(tmp_path, replace(run, config=with_values(run.config, change)))
    store = read_store(tmp_path)
    [drawn] = [one for one in drawn_figures(series_of(store.results), store.results, None) if one.name == "placement"]
    shown = labels(drawn.figure)
    assert len(shown) == 3
    assert len([label for label in shown if "dropout schedule rising" in label]) == 1
    assert len([label for label in shown if "backbone stage dropout [0.1]" in label]) == 1


def test_a_setting_that_came_later_has_its_value_in_runs_from_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in study_runs("figure2", *ONE_SEED, "dataset=pacs", "dropout=0.9", "test_domain=0", "seed=0"):
        for schedule in ("constant", "rising"):
            write_run(tmp_path, replace(run, config=with_values(run.config, {"dropout_schedule": schedule})))
    results, _ = read_all(tmp_path)
    assert {result.content["settings"].get("dropout_schedule") for result in results} == {None, "rising"}
    report = make_report(read_store(tmp_path))
    assert report.varied["dropout_schedule"] == ["constant", "rising"]
    Terminal().show(*sweep_table(results, "erm"))
    shown = capsys.readouterr().out
    assert "│ constant " in shown
    assert "–" not in shown


def test_every_line_between_two_networks_has_a_panel(tmp_path: Path) -> None:
    """Lines of other networks, image sizes and directions are neither averaged together nor drawn as one."""
    narrow = ("seed=0,1", "optim.weight_decay=1e-4", "optim.lr=1e-3", "dataset=pacs,vlcs", "dropout=0")
    known: dict[tuple[str, int, float], list[float]] = {}

    def place(run: PlannedRun) -> tuple[str, str]:
        return run.config.dataset.name, run.test_domain

    for number, changes in enumerate(({}, {"image_size": 96}, {"image_size": 96, "batch_size": 8}, {"dropout": 0.5})):
        runs = [
            replace(run, config=with_values(run.config, changes))
            for run in study_runs("figure2", *narrow)
            if not changes or run.config.dataset.name == "pacs"
        ]
        for run in runs:
            write_run(tmp_path, run, curves=False)
        for (dataset, domain), both in itertools.groupby(sorted(runs, key=place), place):
            first, second = both
            lines = [([first, second], 0.0), ([second, first], 0.1)]
            for members, gain in lines[:1] if changes else lines:
                ood = 0.5 + number / 100 + gain + len(domain) / 1000
                write_combination(tmp_path, "connectivity", members, ("seed",), 0.9, round(ood, 6))
                known.setdefault((dataset, number, gain), []).append(100 * ood)
    points = connectivity_points(read_store(tmp_path).results)
    assert (points.groupby(["panel", "along", "alpha"]).size() == 1).all()
    panels = points[(points.along == "weights") & (points.alpha == 0.5)]
    assert set(panels.lines) == {4}
    assert sorted(panels.ood) == pytest.approx(sorted(sum(some) / 4 for some in known.values()))
    assert len(panels) == 5 + 2
    assert sorted(panels.panel[panels.dataset == "vlcs"]) == ["VLCS, between seed=0,1", "VLCS, between seed=1,0"]
    small = panels[panels.panel.str.contains("px 96")]
    assert len(small) == 2
    assert small.panel.str.contains("batch size 8").sum() == 1
    assert len(connectivity_figure(points).axes) == 2 * 7


def test_no_two_series_of_a_panel_look_alike(tmp_path: Path) -> None:
    for run in study_runs("figure2", *ONE_SEED, "dataset=pacs"):
        for rate in (0.0, 0.2, 0.3, 0.5, 0.8, 0.9):
            if run.config.dropout:
                write_run(tmp_path, replace(run, config=with_values(run.config, {"dropout": rate})))
    store = read_store(tmp_path)
    drawn = next(
        one for one in drawn_figures(series_of(store.results), store.results, None) if one.name == "dropout_rates"
    )
    [axes] = drawn.figure.axes
    looks = [
        (to_hex(line.get_markeredgecolor()), to_hex(line.get_markerfacecolor()), line.get_fillstyle())  # type: ignore[arg-type]
        for line in axes.get_lines()
    ]
    assert len(looks) == len(set(looks)) == 6
    assert {line.get_marker() for line in axes.get_lines()} == {"o"}  # ERM's, at every rate


def test_a_single_point_is_no_cloud(tmp_path: Path) -> None:
    """It is drawn as a mean alone, and the captions speak of no cloud."""
    for run in study_runs("figure2", "seed=0,1", "optim.weight_decay=1e-4", "optim.lr=1e-3", "dataset=pacs"):
        write_run(tmp_path, run, curves=False)
    results = read_store(tmp_path).results
    drawn = {one.name: one for one in drawn_figures(series_of(results), results, None)}
    assert set(drawn["methods"].points.kind) == {"mean"}
    assert all(len(dots.get_offsets()) == 0 for dots in drawn["methods"].figure.axes[0].collections)
    assert not [one.name for one in drawn.values() if "cloud" in one.caption]
    assert "Shaded" not in drawn["dropout_curves"].caption


def test_the_page_can_write_every_methods_marker() -> None:
    assert set(METHOD_MARKERS.values()) <= MARKS.keys()


def test_domains_are_marks_of_their_methods_not_bars(everything: Path) -> None:
    """The axis does not begin at 0, where a bar's length would mislead."""
    store = read_store(everything)
    drawn = next(one for one in drawn_figures(series_of(store.results), store.results, None) if one.name == "domains")
    axes = drawn.figure.axes[0]
    assert not axes.patches
    for container in axes.containers:
        [marks, *_] = container
        method = drawn.points[drawn.points.series == container.get_label()].method.iloc[0]
        assert marks.get_marker() == METHOD_MARKERS[method]  # type: ignore[attr-defined]
    assert "Error bars" in drawn.caption


def test_incomplete_series_are_marked_in_the_legend(tmp_path: Path) -> None:
    runs = study_runs("figure2", *ONE_SEED, "dataset=pacs")
    for run in runs[1:]:
        write_run(tmp_path, run)
    store = read_store(tmp_path)
    drawn = next(iter(drawn_figures(series_of(store.results), store.results, "figure2")))
    assert "ERM, dropout 0 †" in labels(drawn.figure)
    assert "ERM, dropout 0.9" in labels(drawn.figure)
    assert "incomplete" in drawn.caption


def test_learning_curves_are_the_files(everything: Path) -> None:
    path = next(path for path in sorted(everything.glob("runs/pacs/*/*")) if (path / "metrics.jsonl").stat().st_size)
    lines = pd.read_json(path / "metrics.jsonl", lines=True)
    curves = learning_curves({"one": path})
    assert len(curves) == len(lines) == 15
    assert curves.ood.tolist() == pytest.approx((100 * lines.ood_acc).tolist())
    assert curves.step.tolist() == lines.step.tolist()


def test_a_figure_is_as_wide_as_a_column_or_two(everything: Path) -> None:
    [drawn], _ = figures_of(everything, "figure2")
    assert clouds_figure(drawn.points[drawn.points.dataset == "pacs"]).get_figwidth() == pytest.approx(3.4)
    assert clouds_figure(drawn.points).get_figwidth() == pytest.approx(6.8)
