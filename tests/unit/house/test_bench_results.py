"""Results of benches: ratios, goals, regressions, and that what is written is read again."""

from __future__ import annotations

from pathlib import Path

from tests.bench.results import Figure, Result, chart, dump, figure, load, merged, missed, page, regressions


def result(ours: float, theirs: float, *, goal: float = 1.0, higher: bool = False) -> Result:
    figures = (Figure("gantry", ours, ours, ours), Figure("docker.io", theirs, theirs, theirs))
    return Result("key", "title", "ms", figures, {"docker.io": goal}, higher)


def test_ratio_is_smaller_when_better_in_either_direction() -> None:
    assert result(1, 4).ratio("docker.io") == 0.25
    assert result(4, 1, higher=True).ratio("docker.io") == 0.25
    assert result(1, 0).ratio("docker.io") is None
    assert result(1, 4).ratio("nobody") is None


def test_goals_that_do_not_hold_are_named() -> None:
    assert missed(result(1, 4, goal=0.25)) == []
    assert missed(result(2, 4, goal=0.25)) == ["title: 0.50 × docker.io, the goal is 0.25"]


def test_regressions_are_a_third_or_more() -> None:
    assert regressions([result(1, 4)], [result(1.3, 4)]) == []
    assert regressions([result(1, 4)], [result(1.4, 4)]) == ["title: 0.35 × docker.io, it was 0.25"]
    assert regressions([], [result(9, 1)]) == []


def test_new_rows_take_the_places_of_old_ones() -> None:
    other = result(1, 2)._replace(key="other")
    assert merged([result(1, 4), other], [result(2, 4)]) == [result(2, 4), other]
    assert merged([other], [result(2, 4)]) == [other, result(2, 4)]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    dump(path, {"runc": "1"}, [result(1, 4), result(5, 1, higher=True)])
    again = load(path)
    assert [r.ratio("docker.io") for r in again] == [0.25, 0.2]
    assert load(tmp_path / "none") == []


def test_page_and_chart_show_ratio_and_goal() -> None:
    text = page({"runc": "1.1"}, [result(1, 4, goal=0.3)], "command")
    assert "| docker.io | 4.0 | 4.0 | 4.0 | 1 | 0.25 | ≤ 0.30 |" in text
    assert "| runc | 1.1 |" in text
    assert chart([result(1, 4)]).count("<rect") == 1


def test_figure_is_the_median() -> None:
    assert figure("a", [3.0, 1.0, 2.0], 10) == Figure("a", 20.0, 10.0, 30.0, 3)
