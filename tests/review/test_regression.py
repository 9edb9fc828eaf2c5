"""What counts as a regression: runs of one notebook that differ in one thing."""

import math

import numpy as np
import pandas as pd
import pytest

from spyre_bench.review.regression import TOLERANCES, compare, compare_pairs, curves
from spyre_bench.runs.records import Record, Tie, Traits

CALCULATES, MEASURES = Traits(measures=False), Traits(measures=True)


def a_run(traits=CALCULATES, **parts) -> dict[str, Record]:
    return {"some": Record("some", traits, parts.pop("error", None), **parts)}


def state_of(was, now, name="results/x", traits=CALCULATES, **more) -> tuple[str, bool]:
    """State and failure of one result or, where they are lists, of one column of a table."""
    part, _, rest = name.partition("/")
    runs = []
    for value in (was, now):
        if part == "results":
            runs.append(a_run(traits, results={rest: value}))
        else:
            table, _, column = rest.partition("/")
            runs.append(a_run(traits, tables={table: pd.DataFrame({column: value})}))
    found = compare(*runs, **more).set_index("item").loc[name]
    return found["state"], bool(found["fails"])


def only_difference(base, new, **more) -> pd.Series:
    found = compare(base, new, **more)
    (row,) = found[found["state"] != "same"].itertuples()
    return row


def test_a_run_does_not_differ_from_itself():
    run = a_run(
        results={"fill": 0.5, "never": math.inf, "buckets": [[2, 64, 32]]},
        checks={"sane": True},
        figures=("waste",),
        tables={"t": pd.DataFrame({"a_s": [1.0, math.nan], "b": ["x", None]})},
    )
    found = compare(run, run)
    assert set(found["state"]) == {"same"}
    assert set(found["item"]) == {
        "outcome",
        "results/fill",
        "results/never",
        "results/buckets",
        "checks/sane",
        "figures/waste",
        "tables/t",
        "tables/t/a_s",
        "tables/t/b",
    }


@pytest.mark.parametrize(
    ("was", "now"),
    [(3, 4), ("best_fit", "skip"), ([[2, 64, 32]], [[2, 64, 48]]), (True, False), ("7", 7.5)],
)
@pytest.mark.parametrize("traits", [CALCULATES, MEASURES], ids=["calculates", "measures"])
def test_counts_and_choices_must_be_the_same_whoever_made_them(was, now, traits):
    assert state_of(was, now, traits=traits) == ("changed", True)


def test_what_is_calculated_must_agree_to_a_millionth():
    assert state_of(1.0, 1.0 + 9e-7) == ("same", False)
    assert state_of(1.0, 1.0 + 2e-6) == ("changed", True)


def test_a_calculated_nothing_may_be_a_rounding_error():
    assert state_of(0.0, 3e-12) == ("same", False)
    assert state_of(0.0, 1e-3) == ("changed", True)


@pytest.mark.parametrize(
    ("name", "change"),
    [("results/fill", 0.11), ("results/warm_over_cold", 0.11), ("results/start_s", 0.51)],
)
def test_a_ratio_of_one_run_is_held_tighter_than_seconds_of_a_clock(name, change):
    within = 0.9 * change
    assert state_of(2.0, 2.0 * (1 + within), name, MEASURES)[0] == "same"
    assert state_of(2.0, 2.0 * (1 + change), name, MEASURES)[0] != "same"


def test_an_error_whose_ideal_is_nothing_is_compared_by_its_difference():
    assert state_of(0.01, 0.09, "results/start_error", MEASURES) == ("same", False)
    assert state_of(0.01, 0.12, "results/start_error", MEASURES) == ("worse", True)


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("results/start_s", 1.0, 3.0),
        ("results/capacity_rps", 3.0, 1.0),
        ("results/fill", 3.0, 1.0),
        ("results/held_out_goodput_rps", 3.0, 1.0),
        ("results/over_shape_bound", 1.0, 3.0),
        ("results/requests_lost", 1, 3),
    ],
)
def test_of_an_old_run_the_name_tells_which_direction_is_better(name, better, worse):
    assert state_of(better, worse, name) == ("worse", True)
    assert state_of(worse, better, name) == ("better", False)


@pytest.mark.parametrize("change", ["higher", "lower"])
@pytest.mark.parametrize("told", ["higher", "lower", None])
@pytest.mark.parametrize("name", ["results/x_s", "results/over_shape_bound/work bound"])
def test_what_the_notebook_says_is_better_comes_before_the_name(name, told, change):
    _, result, *key = name.split("/")
    was, now = (1.0, 2.0) if change == "higher" else (2.0, 1.0)
    base, new = (
        a_run(results={result: {key[0]: value} if key else value}, better={name: told})
        for value in (was, now)
    )
    wanted = "changed" if told is None else "better" if told == change else "worse"
    assert only_difference(base, new).state == wanted


def test_a_tighter_proved_bound_is_no_loss_and_a_looser_one_is():
    better = {"results/over_shape_bound": "lower", "results/over_shape_bound/work bound": "higher"}
    base, new = (
        a_run(results={"over_shape_bound": {"work bound": bound, "skip": 2.0}}, better=better)
        for bound in (0.5, 0.6)
    )
    assert only_difference(base, new).state == "better"
    assert only_difference(new, base).state == "worse"


def test_a_run_that_says_of_no_result_which_way_is_better_is_not_guessed_at():
    base, new = (a_run(results={"x_s": value}, better={}) for value in (1.0, 2.0))
    assert only_difference(base, new).state == "changed"


def test_an_old_run_is_judged_by_what_the_other_one_says():
    old, new = a_run(results={"x_s": 1.0}), a_run(results={"x_s": 2.0})
    told = {"results/x_s": "higher"}
    assert only_difference(old, a_run(results={"x_s": 2.0}, better=told)).state == "better"
    assert only_difference(a_run(results={"x_s": 1.0}, better=told), new).state == "better"
    assert only_difference(old, new).state == "worse"  # neither says: by the name


def test_a_tables_column_is_better_as_told_and_else_as_its_unit_says():
    base, new = (
        a_run(
            tables={"t": pd.DataFrame({"bound_s": [value], "wait_s": [value]})},
            better={"tables/t/bound_s": "higher"},
        )
        for value in (1.0, 2.0)
    )
    found = compare(base, new).set_index("item")["state"]
    assert (found["tables/t/bound_s"], found["tables/t/wait_s"]) == ("better", "worse")


def test_the_unit_is_that_of_the_result_and_not_of_its_key():
    base, new = (a_run(results={"wait_s": {"fill": value}}) for value in (1.0, 2.0))
    assert only_difference(base, new).state == "worse"


def test_a_change_for_no_known_better_fails_only_where_it_is_calculated():
    assert state_of(1.0, 2.0, "results/knee", CALCULATES) == ("changed", True)
    assert state_of(1.0, 2.0, "results/knee", MEASURES) == ("changed", False)


def test_seconds_on_the_wall_are_measured_whoever_takes_them():
    assert state_of(1.0, 1.3, "results/solver_wall_s", CALCULATES) == ("same", False)
    assert state_of(1.0, 1.3, "results/solver_s", CALCULATES) == ("worse", True)


def test_a_notebook_that_measures_may_calculate_too():
    traits = Traits(measures=True, calculated=("results/card_*",))
    assert state_of(1.0, 1.01, "results/card_s", traits) == ("worse", True)
    assert state_of(1.0, 1.01, "results/engine_s", traits) == ("same", False)


def test_what_a_notebook_calls_chance_is_shown_and_does_not_fail():
    traits = Traits(measures=True, chance=("results/batches",))
    assert state_of(3, 4, "results/batches", traits) == ("by chance", False)


def test_a_calculated_table_is_compared_row_by_row_and_says_its_worst():
    was, now = [1.0, 2.0, 4.0], [1.0, 2.2, 4.0]
    assert state_of(was, now, "tables/t/wait_s") == ("worse", True)
    row = only_difference(*(a_run(tables={"t": pd.DataFrame({"a": x})}) for x in (was, now)))
    assert row.change == pytest.approx(0.1)


@pytest.mark.parametrize(("was", "now"), [([1.0, 1.0], [0.9, 1.05]), ([10, 10], [5, 11])])
def test_no_row_that_got_better_makes_up_for_one_that_got_worse(was, now):
    assert state_of(was, now, "tables/t/wait_s") == ("worse", True)
    assert state_of(now, was, "tables/t/wait_s") == ("worse", True)


def test_a_row_that_is_worse_within_the_tolerance_leaves_a_column_better():
    assert state_of([1.0, 1.0], [0.9, 1.0 + 1e-9], "tables/t/wait_s")[0] == "better"


@pytest.mark.parametrize(("column", "state"), [("share", "changed"), ("wait_s", "worse")])
def test_a_row_that_was_nothing_has_changed_without_end(column, state):
    assert state_of([0.0, 1.0], [1.0, 1.0], f"tables/t/{column}") == (state, True)


def test_of_a_measured_table_the_median_counts_since_single_rows_may_be_off():
    assert state_of([1.0, 1.0, 1.0], [1.0, 1.0, 9.0], "tables/t/pass_s", MEASURES)[0] == "same"
    assert state_of([1.0, 1.0, 1.0], [1.0, 9.0, 9.0], "tables/t/pass_s", MEASURES)[0] == "worse"


def test_a_number_that_became_none_or_text_is_a_change():
    assert state_of([1.0, 2.0], [1.0, math.nan], "tables/t/a_s") == ("changed", True)
    assert state_of([1.0, 2.0], ["1.0", "two"], "tables/t/a_s", MEASURES) == ("changed", True)
    assert state_of(1.0, math.inf) == ("changed", True)


def test_times_of_the_clock_are_not_compared():
    base, new = (
        a_run(tables={"t": pd.DataFrame({"measured_at": [when]})}) for when in ("2026", "2027")
    )
    assert not compare(base, new)["fails"].any()


def test_another_number_of_rows_is_said_once():
    base, new = (a_run(MEASURES, tables={"t": pd.DataFrame({"a_s": [1.0] * n})}) for n in (2, 3))
    row = only_difference(base, new)
    assert (row.item, row.base, row.new, row.fails) == ("tables/t", "2", "3", True)


@pytest.mark.parametrize(
    ("part", "item"),
    [
        ({"results": {"fill": 0.5}}, "results/fill"),
        ({"checks": {"sane": True}}, "checks/sane"),
        ({"figures": ("waste",)}, "figures/waste"),
        ({"parameters": {"k": 3}}, "parameters/k"),
    ],
)
def test_lost_coverage_fails_and_new_coverage_does_not(part, item):
    lost = only_difference(a_run(**part), a_run())
    assert (lost.item, lost.state, lost.fails) == (item, "vanished", True)
    gained = only_difference(a_run(), a_run(**part))
    assert (gained.item, gained.state, gained.fails) == (item, "new", False)


def test_a_lost_table_column_and_notebook_fail_too():
    full, less = pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"a": [1]})
    lost = only_difference(a_run(tables={"t": full}), a_run(tables={"t": less}))
    assert (lost.item, lost.state) == ("tables/t/b", "vanished")
    assert compare(a_run(tables={"t": full}), a_run())["fails"].sum() == 3
    gone = only_difference(a_run(), {})
    assert (gone.notebook, gone.item, gone.state, gone.fails) == (
        "some",
        "outcome",
        "vanished",
        True,
    )


@pytest.mark.parametrize(
    ("part", "item"),
    [
        ({"error": "cell 3 failed"}, "outcome"),
        ({"results": {"fill": None}}, "results/fill"),
        ({"checks": {"sane": False}}, "checks/sane"),
    ],
)
def test_what_is_broken_fails_even_if_it_was_broken_before(part, item):
    for base in (a_run(), a_run(**part)):
        row = only_difference(base, a_run(**part))
        assert (row.item, row.state, row.fails) == (item, "broken", True)


def test_other_parameters_are_no_regression_but_no_comparison_either():
    row = only_difference(*(a_run(MEASURES, parameters={"rate": x}) for x in (1.0, 1.05)))
    assert (row.item, row.state, row.fails) == ("parameters/rate", "changed", True)


SOLVED = Traits(
    measures=False,
    ties=(Tie("results/buckets", "results/least_s", 1e-3, ("results/saving",)),),
)


@pytest.mark.parametrize(
    ("choice", "least_s", "states"),
    [
        ("b", 1.0005, {"tied"}),  # another choice, as good within the gap
        ("b", 1.01, {"changed", "worse"}),  # another choice, a worse one
        ("a", 1.0005, {"worse"}),  # the same choice: nothing explains the difference
    ],
)
def test_another_choice_as_good_within_the_solvers_gap_is_a_tie(choice, least_s, states):
    was = {"buckets": "a", "least_s": 1.0, "saving": 0.5}
    now = {"buckets": choice, "least_s": least_s, "saving": 0.4}
    found = compare(a_run(SOLVED, results=was), a_run(SOLVED, results=now))
    assert set(found["state"]) - {"same"} == states
    assert found["fails"].any() == (states != {"tied"})


def test_an_objective_with_a_row_beyond_the_gap_is_no_tie_even_where_that_row_gained():
    tie = Tie("tables/k/buckets", "tables/k/least_s", 1e-3, ("tables/k*",))
    runs = [
        a_run(
            Traits(measures=False, ties=(tie,)),
            tables={"k": pd.DataFrame({"buckets": [choice, "b"], "least_s": least_s})},
        )
        for choice, least_s in (("a", [1.0, 1.0]), ("c", [0.9, 1.0005]))
    ]
    assert set(compare(*runs)["state"]) - {"same"} == {"changed", "worse"}


def test_a_tie_does_not_excuse_what_it_does_not_settle():
    was = {"buckets": "a", "least_s": 1.0, "requests": 7}
    now = {"buckets": "b", "least_s": 1.0, "requests": 8}
    found = compare(a_run(SOLVED, results=was), a_run(SOLVED, results=now)).set_index("item")
    assert found.loc["results/buckets", "state"] == "tied"
    assert found.loc["results/requests", "fails"]


def test_tolerances_are_replaced_by_kind_and_by_item():
    assert state_of(1.0, 1.2, "results/fill", MEASURES, tolerances={"ratio": 0.3})[0] == "same"
    for pattern in ("results/fill", "some/results/*"):
        assert state_of(3, 4, "results/fill", tolerances={pattern: 0.5})[0] == "same"
    assert state_of(3, 4, "results/fill", tolerances={"results/full": 0.5})[0] == "better"


@pytest.mark.parametrize(
    ("tolerances", "message"),
    [
        ({"ration": 0.1}, r"tolerance 'ration' is of no kind \(did you mean ratio\?\): there are"),
        ({"ratio": -1.0}, "tolerance ratio = -1.0 is below 0"),
        ({"ratio": math.nan}, "tolerance ratio = nan"),
    ],
)
def test_a_tolerance_that_says_nothing_is_refused(tolerances, message):
    with pytest.raises(ValueError, match=message):
        compare({}, {}, tolerances)


def test_tolerances_grow_from_what_repeats_to_what_the_machine_decides():
    kinds = ("exact", "calculated", "ratio", "seconds")
    assert list(np.diff([TOLERANCES[kind] for kind in kinds]) > 0) == [True] * 3


def test_what_fails_comes_first():
    base = a_run(results={"a": 1, "b_s": 1.0, "c": 1.0})
    new = a_run(results={"a": 1, "b_s": 0.5, "c": 2.0, "d": 1})
    assert compare(base, new)["state"].tolist() == ["changed", "better", "new", "same", "same"]


def test_curves_are_the_numeric_columns_that_differ():
    was = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": ["x", "y"]})
    now = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 3.0], "c": ["x", "z"]})
    runs = a_run(tables={"t": was}), a_run(tables={"t": now})
    ((key, frame),) = curves(*runs, compare(*runs)).items()
    assert key == ("some", "t")
    assert set(frame["panel"]) == {"b"}
    lines = frame.pivot(index="x", columns="series", values="value")
    assert lines["base"].tolist() == [1.0, 2.0]
    assert lines["new"].tolist() == [1.0, 3.0]


# --- in pairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traits", "better", "state", "fails"),
    [
        (MEASURES, {"results/step_s": "lower"}, "worse", True),
        (MEASURES, {"results/step_s": "higher"}, "better", False),
        (MEASURES, {}, "changed", False),
        (Traits(chance=("results/step_s",)), {}, "by chance", False),
    ],
)
def test_in_pairs_as_in_one_run_a_notebook_says_what_a_change_means(traits, better, state, fails):
    pairs = [
        tuple(a_run(traits, results={"step_s": it}, better=better) for it in (1.0, 1.6))
        for _ in range(8)
    ]
    row = compare_pairs(pairs).set_index("item").loc["results/step_s"]
    assert (row["state"], row["fails"]) == (state, fails)


def test_in_pairs_a_column_is_judged_by_its_medians_and_what_is_0_by_its_tolerance():
    def run(factor: float):
        table = pd.DataFrame({"step_s": factor * np.array([1.0, 2.0, 90.0])})
        return a_run(MEASURES, results={"wait_s": 0.0}, tables={"t": table})

    found = compare_pairs([(run(1.0), run(1.2))] * 8).set_index("item")
    assert found.loc["tables/t/step_s", ["state", "kind"]].tolist() == ["worse", "pairs"]
    assert found.loc["tables/t/step_s", "change"] == pytest.approx(0.2)
    assert found.loc["results/wait_s", ["state", "kind"]].tolist() == ["same", "seconds"]
