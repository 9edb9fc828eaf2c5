import json

import numpy as np
import pytest

from spyre_bench.validate.compare import by_quantity, by_request, left_out, read_result

MEASURED = {
    "request_throughput": 2.0,
    "output_throughput": 10.0,
    "duration": 4.0,
    "input_lens": [10, 20, 30],
    "output_lens": [1, 5, 9],
    "ttfts": [1.0, 2.0, 4.0],
    "latencies": [1.0, 4.0, 8.0],
    "spyre_batches": 3,
}
SIMULATED = MEASURED | {
    "request_throughput": 2.1,
    "ttfts": [1.1, 2.0, 3.0],
    "latencies": [1.1, 5.0, 8.0],
    "spyre_fill": 0.5,  # the measured run does not know it
}


def errors(measured, simulated) -> dict:
    return by_quantity(measured, simulated).set_index("quantity")["error"].to_dict()


def test_requests_are_compared_one_by_one():
    frame = by_request(MEASURED, SIMULATED)
    assert frame["error_ttft"].tolist() == pytest.approx([0.1, 0, -0.25])
    assert frame["error_e2el"].tolist() == pytest.approx([0.1, 0.25, 0])
    assert frame["measured_tpot_s"].tolist() == pytest.approx([np.nan, 0.5, 0.5], nan_ok=True)
    assert frame["simulated_tpot_s"].tolist() == pytest.approx([np.nan, 0.75, 0.625], nan_ok=True)


def test_bias_is_signed_and_says_its_direction_and_an_absolute_error_has_none():
    simulated = MEASURED | {
        "request_throughput": 2.1,
        "ttfts": [0.9, 1.8, 3.6],
        "latencies": [1.1, 5.0, 8.0],
    }
    rows = by_quantity(MEASURED, simulated).set_index("quantity")
    said = rows[["kind", "direction"]].apply(tuple, axis=1)
    assert said["requests/s"] == ("bias", "optimistic")  # more are promised than came
    assert said["TTFT P99 [s]"] == ("bias", "optimistic")  # and sooner
    assert said["E2EL median [s]"] == ("bias", "pessimistic")
    assert said["duration [s]"] == ("bias", "")  # as measured
    assert rows.at["TTFT of a request, median", "error"] == pytest.approx(-0.1)
    assert said["TTFT of a request, median"] == ("bias", "optimistic")
    assert rows.at["TTFT of a request, median absolute error", "error"] == pytest.approx(0.1)
    assert said["TTFT of a request, median absolute error"] == ("absolute", "")


def test_the_errors_are_simulated_over_measured_less_one():
    found = errors(MEASURED, SIMULATED)
    assert found["requests/s"] == pytest.approx(0.05)
    assert found["batches"] == 0
    assert "fill" not in found
    assert found["E2EL median [s]"] == pytest.approx(5 / 4 - 1)
    assert found["E2EL of a request, median absolute error"] == pytest.approx(0.1)
    assert found["TTFT of a request, P99 absolute error"] == pytest.approx(0.1 + 0.98 * 0.15)


def test_without_arrays_the_saved_statistics_are_compared():
    plain = {"request_throughput": 2.0, "median_e2el_ms": 100.0, "p99_e2el_ms": 0.0}
    found = errors(plain, plain | {"median_e2el_ms": 90.0, "p99_e2el_ms": 1.0})
    assert found["median E2EL [ms]"] == pytest.approx(-0.1)
    assert np.isnan(found["p99 E2EL [ms]"])  # nothing is to be related to 0
    assert not [name for name in found if "request," in name]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"input_lens": [10, 20]}, "3 requests were measured and 2 simulated"),
        ({"input_lens": [10, 21, 30]}, r"input_lens of request 1 .* is 20 measured and 21"),
        ({"output_lens": [1, 5, 8]}, r"output_lens of request 2 .* is 9 measured and 8"),
    ],
)
def test_results_of_other_requests_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        by_request(MEASURED, SIMULATED | changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"completed": 6, "failed": 4}, "10 requests completed measured and 6 simulated"),
        ({"total_output_tokens": 99}, "100 output tokens measured and 99 simulated"),
    ],
)
def test_so_are_totals_of_other_requests_where_nothing_else_tells(changed, words):
    plain = {"request_throughput": 2.0, "completed": 10, "total_output_tokens": 100}
    assert errors(plain, plain | {"failed": 0})["requests/s"] == 0
    with pytest.raises(ValueError, match=words):
        by_quantity(plain, plain | changed)


def test_a_result_without_arrays_has_no_requests_to_compare():
    with pytest.raises(
        ValueError, match="the measured result has no input_lens: save it with --sa"
    ):
        by_request({"request_throughput": 1.0}, SIMULATED)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not JSON"), ("[]", "not a result"), ("{}", "no request_throughput")]
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"some\.json: .*{words}"):
        read_result(path)


def test_a_result_reads_back(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(MEASURED))
    assert read_result(path) == MEASURED


def test_the_gaps_between_tokens_stand_in_for_a_latency(tmp_path):
    gaps = {"itls": [[], [0.5] * 4, [0.5] * 8]}
    plain = {name: value for name, value in MEASURED.items() if name != "latencies"} | gaps
    (tmp_path / "some.json").write_text(json.dumps(plain))
    assert read_result(tmp_path / "some.json")["latencies"] == [1.0, 4.0, 8.0]


def test_what_is_left_out_is_said_and_why():
    plain = {name: value for name, value in MEASURED.items() if name != "ttfts"}
    assert not list(left_out(MEASURED, SIMULATED))
    (sentence,) = left_out(MEASURED, plain)
    assert sentence.startswith("single requests are not compared, the simulated result has no ttf")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"duration": None}, "duration null is not a number"),
        ({"duration": [1]}, r"duration \[1\] is not a number"),
        ({"completed": "59"}, "completed '59' is not a number"),
        ({"total_output_tokens": [9]}, r"total_output_tokens \[9\] is not a number"),
        ({"ttfts": [1.0, 2.0]}, "unequal length: input_lens has 3, output_lens has 3, ttfts has 2"),
        ({"ttfts": [1.0, None, 2.0]}, r"ttfts of request 1 .* is null, not a number of 0 or more"),
        ({"ttfts": [1.0, -1, 2.0]}, r"ttfts of request 1 .* is -1, not"),
        ({"output_lens": [1, 2.5, 3]}, "output_lens of request 1 .* is 2.5, not a whole number"),
        ({"latencies": 3}, "latencies 3 is not a list"),
        ({"latencies": None, "itls": [[]]}, "itls is not a list with the gaps of each request"),
        ({"request_throughput": 10**400}, "request_throughput 1000.*… is not a number"),
    ],
)
def test_a_number_or_array_that_is_none_is_refused_by_name(tmp_path, changed, words):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(MEASURED | changed))
    with pytest.raises(ValueError, match=rf"some\.json: .*{words}"):
        read_result(path)
