"""What a trace file is taken for: no guess without a word, and every door."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from spyre_bench.workload.source import load_workload
from spyre_bench.workload.trace_formats import Reading
from spyre_bench.workload.workload import Workload

LENGTHS = [(374, 44), (396, 109)]


def rows(requests: Workload) -> list[tuple]:
    columns = requests.arrival_s, requests.prompt_tokens, requests.output_tokens
    return [tuple(row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def csv(tmp_path, name: str, *times: object, file: str = "trace.csv"):
    path = tmp_path / file
    lines = [f"{time},{p},{o}" for time, (p, o) in zip(times, LENGTHS, strict=True)]
    path.write_text(f"{name},prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    return path


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "times", "said"),
    [
        ("arrival_ms", (100, 600), "arrival_ms in ms"),
        ("request_time_us", (0, 500_000), "request_time_us in us"),
        ("arrival_time_ns", (7, 500_000_007), "arrival_time_ns in ns"),
        ("startSeconds", (3, 3.5), "startSeconds in s"),
        ("timestamp", (1700000000, 1700000000.5), "timestamp in s since 1970"),
        ("timestamp", (1700000000000, 1700000000500), "timestamp in ms since 1970"),
        ("ts", (1700000000000000000, 1700000000500000000), "ts in ns since 1970"),
        ("created_at", ("2024-01-01T00:00:00Z", "2024-01-01 00:00:00.5"), "created_at in dates"),
    ],
)
def test_times_that_can_only_be_read_in_one_way_are_used(tmp_path, name, times, said):
    requests = Workload.read(csv(tmp_path, name, *times))
    assert requests.arrival_s.tolist() == pytest.approx([0, 0.5], abs=1e-6)
    assert f"arrivals from {said}" in requests.read_as


@pytest.mark.parametrize("name", ["timestamp", "arrival_time", "created_at", "time", "t start"])
def test_times_without_a_unit_are_refused_by_name_and_an_option_settles_it(tmp_path, name):
    path = csv(tmp_path, name, 0, 500)
    with pytest.raises(ValueError, match=f"{name} may hold times, but nothing says in which unit"):
        Workload.read(path)
    told = Workload.read(path, Reading.parse(f"arrival={name}", "ms"))
    assert rows(told) == [(0, 374, 44), (0.5, 396, 109)]
    assert rows(Workload.read(path, Reading(time_unit="ms"))) == rows(told)
    assert rows(Workload.read(path, Reading.parse("arrival=none")))[1] == (0, 396, 109)


def test_a_name_without_a_word_in_it_says_nothing_of_a_unit(tmp_path):
    path = csv(tmp_path, "€", 0, 500)
    with pytest.raises(ValueError, match="nothing says in which unit"):
        Workload.read(path, Reading.parse("arrival=€"))
    assert rows(Workload.read(path, Reading.parse("arrival=€", "ms")))[1] == (0.5, 396, 109)


def test_dates_that_may_be_of_two_days_are_refused_with_the_form_to_write(tmp_path):
    path = csv(tmp_path, "time", "05/10/2024 00:00:00", "05/10/2024 00:00:01")
    with pytest.raises(ValueError, match="00:00:00 is no number: say it as a date and time, such"):
        Workload.read(path)
    with pytest.raises(ValueError, match=r"line 2: time 05/10/2024 .* must be a date and time"):
        Workload.read(path, Reading.parse("arrival=time"))


def test_two_columns_of_times_are_not_chosen_between(tmp_path):
    path = csv(tmp_path, "sent_s,received_s", "0,1", "5,6")
    with pytest.raises(ValueError, match="sent_s and received_s may hold times"):
        Workload.read(path)
    assert Workload.read(path, Reading.parse("arrival=sent_s")).arrival_s.tolist() == [0, 5]


@pytest.mark.parametrize("name", ["latency_s", "elapsed time", "ttft_ms", "user", "time_zone"])
def test_what_took_long_is_no_arrival(tmp_path, name):
    assert "no times: all arrive at 0" in Workload.read(csv(tmp_path, name, 1, 2)).read_as


def test_gaps_between_arrivals_are_not_taken_for_arrivals(tmp_path):
    with pytest.raises(ValueError, match="inter_arrival_s may hold times"):
        Workload.read(csv(tmp_path, "inter_arrival_s", 1, 2))


@pytest.mark.parametrize(("times", "unit"), [((1.7e12, 1.7e12 + 500), "ms"), ((1.7e18,) * 2, "ns")])
def test_a_unit_that_does_not_go_with_the_values_is_refused(tmp_path, times, unit):
    path = csv(tmp_path, "arrival_s", *(f"{time:.0f}" for time in times))
    with pytest.raises(ValueError, match=f"line 2: arrival_s .* looks like a date in {unit}"):
        Workload.read(path)
    told = Workload.read(path, Reading(time_unit=unit))
    assert f"in {unit} since 1970, counted from 2023-11-14 22:13:20 UTC, as told" in told.read_as


MOON = '{{"timestamp": {}, "input_length": 374, "output_length": 44}}\n'


@pytest.mark.parametrize("times", [(0, 10), (0.5, 2000.25), range(100)])
def test_mooncakes_names_with_seconds_are_not_read_as_milliseconds(tmp_path, times):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(map(MOON.format, times)))
    with pytest.raises(ValueError, match="in milliseconds in Mooncake's files, but here it"):
        Workload.read(path)
    seconds = Workload.read(path, Reading(time_unit="s"))
    assert seconds.arrival_s.tolist() == [time - times[0] for time in times]
    assert Workload.read(path, Reading(time_unit="ms")).span_s == pytest.approx(
        seconds.span_s / 1e3
    )


def test_a_unit_is_for_numbers_and_not_for_dates(tmp_path):
    path = tmp_path / "trace.csv"
    for name in ("TIMESTAMP,ContextTokens,GeneratedTokens", "at,prompt_tokens,output_tokens"):
        path.write_text(f"{name}\n2024-01-01 00:00:00,374,44\n2024-01-01 00:00:01,396,109\n")
        with pytest.raises(ValueError, match="holds dates, which have no time unit"):
            Workload.read(path, Reading(time_unit="s"))
        path.write_text(f"{name}\n1000,374,44\n1500,396,109\n")
        assert Workload.read(path, Reading(time_unit="ms")).arrival_s.tolist() == [0, 0.5]


def test_columns_of_any_name_are_read_where_told(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("when;n in;n_out;limit\n5;374;44;50\n7;396;109;200\n")
    reading = Reading.parse("arrival=when,prompt=n in,output=n_out,max_tokens=limit", "s", ";")
    requests = Workload.read(path, reading)
    assert rows(requests) == [(0, 374, 44), (2, 396, 109)]
    assert requests.max_tokens.tolist() == [50, 200]
    assert requests.read_as == (
        "log.csv: columns as given; arrivals from when in s, as told; lengths from n in, n_out; "
        "max_tokens from limit"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("arrival",), "'arrival' is not PART=COLUMN"),
        (("when=x",), "columns 'when' is not one of arrival, prompt, output, max_tokens"),
        (("arrival=a,arrival=b",), "gives arrival twice"),
        ((None, "min"), "time unit 'min' is not one of s, ms, us, ns"),
        (("arrival=nowhere",), "no column 'nowhere' for arrival: it has arrival_s"),
        ((None, None, "::"), "separator '::' is not one character"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        Workload.read(csv(tmp_path, "arrival_s", 0, 1), Reading.parse(*settings))


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolon"), ("\t", "tab"), ("|", "pipe")])
def test_another_separator_is_found_and_said(tmp_path, separator, name):
    path = csv(tmp_path, "arrival_s", 0, 1)
    path.write_text(path.read_text().replace(",", separator))
    assert f"; {name}s between columns" in Workload.read(path).read_as
    for told in (name, separator):
        assert "between columns" not in Workload.read(path, Reading(separator=told)).read_as
    with pytest.raises(ValueError, match=f"has no comma .* say --separator {name}"):
        Workload.read(path, Reading(separator="comma"))


def test_a_spreadsheet_of_a_country_with_decimal_commas_is_read(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_text("arrival_s;prompt;completion\n0,5;374;44\n1,25;396;109\n", "utf-8-sig")
    assert rows(Workload.read(path)) == [(0, 374, 44), (0.75, 396, 109)]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        "prompt,completion",
        "input_length,output_length",
        "InputTokens,OutputTokens",
        "num_prompt_tokens,num_generation_tokens",
        "n_in,n_out",
        "isl,osl",
        "Request Token Count,Response Token Count",
    ],
)
def test_other_spellings_are_guessed_and_the_guess_is_said(tmp_path, names):
    path = tmp_path / "log.csv"
    path.write_text(f"user,{names},max_new_tokens\nann,374,44,50\nbob,396,109,200\n")
    some = Workload.read(path)
    assert [row[1:] for row in rows(some)] == LENGTHS
    assert some.max_tokens.tolist() == [50, 200]
    prompt, output = names.split(",")
    assert "guessed from its columns' names" in some.read_as
    assert f"lengths from {prompt}, {output}; max_tokens from max_new_tokens" in some.read_as


def test_a_column_that_counts_goes_before_one_that_holds_the_text(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("prompt,input_tokens,completion,completion_tokens\nHello,374,Hi,44\n")
    assert [row[1:] for row in rows(Workload.read(path))] == LENGTHS[:1]
    path.write_text("prompt,completion\nHello,Hi\n")
    with pytest.raises(ValueError, match=r"log\.csv line 2: prompt Hello is wrong: a length is"):
        Workload.read(path)


def test_two_columns_of_prompts_are_not_chosen_between(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("prompt_tokens,input_tokens,completion\n374,400,44\n")
    with pytest.raises(ValueError, match=r"may each be the prompt tokens: say --columns prompt="):
        Workload.read(path)
    for part in ("prompt", "prompt_tokens"):
        told = Workload.read(path, Reading.parse(f"{part}=input_tokens,output=completion"))
        assert told.prompt_tokens.tolist() == [400]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (("2024-05-10 00:00:00.500000+02:00", "2024-05-10 00:00:01+02:00"), "dates"),
        (("2024-05-09T22:00:00.5Z", "2024-05-10T00:00:01+02:00"), "dates"),
        ((1700000000.25, 1700000000.75), "s since 1970"),
        ((1700000000250, 1700000000750), "ms since 1970"),
    ],
)
def test_azures_times_are_read_with_zones_and_as_numbers(tmp_path, times, said):
    path = tmp_path / "azure.csv"
    lines = [f"{t},{p},{o}" for t, (p, o) in zip(times, LENGTHS, strict=True)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines))
    some = Workload.read(path)
    assert some.arrival_s.tolist() == pytest.approx([0, 0.5], abs=1e-6)
    assert f"arrivals from TIMESTAMP in {said}" in some.read_as


def test_azures_column_with_numbers_of_no_epoch_is_asked_for_its_unit(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n1000,374,44\n1500,396,109\n")
    with pytest.raises(ValueError, match="nothing says in which unit TIMESTAMP is"):
        Workload.read(path)


# --- doors ----------------------------------------------------------------------------------------

SERVEGEN = [
    {"request_id": n, "timestamp": 2.5 + n / 2, "data": {"input_tokens": p, "output_tokens": o}}
    for n, (p, o) in enumerate(LENGTHS)
]
ARRAYS = {
    "servegen, indented": json.dumps(SERVEGEN, indent=1),
    "servegen, in one line": json.dumps(SERVEGEN),
    "servegen, within an object": json.dumps({"seed": 1, "requests": SERVEGEN}, indent=2),
    "servegen, lines": "\n".join(map(json.dumps, SERVEGEN)),
    "our own": json.dumps(
        [
            {"arrival_s": n / 2, "prompt_tokens": p, "output_tokens": o}
            for n, (p, o) in enumerate(LENGTHS)
        ]
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_json_is_read_in_every_shape(tmp_path, kind):
    (tmp_path / "trace.json").write_text(ARRAYS[kind])
    requests = Workload.read(tmp_path / "trace.json")
    assert rows(requests) == [(0, 374, 44), (0.5, 396, 109)]


COMPLETIONS = [
    {
        "created": 1_700_000_000 + n,
        "choices": [{"index": 0}],
        "usage": {
            "prompt_tokens": p,
            "completion_tokens": o,
            "prompt_tokens_details": {"audio": 0},
        },
    }
    for n, (p, o) in enumerate(LENGTHS)
]


def lines(tmp_path, *records: object):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_line_of_several_is_one_record_though_it_holds_an_array(tmp_path):
    requests = Workload.read(lines(tmp_path, *COMPLETIONS))
    assert rows(requests) == [(0, 374, 44), (1, 396, 109)], "of usage, not of choices"
    with pytest.raises(ValueError, match="line 1 has the columns session, turns"):
        Workload.read(lines(tmp_path, *[{"session": n, "turns": SERVEGEN} for n in (1, 2)]))


def test_an_array_per_line_is_refused_and_none_is_dropped(tmp_path):
    with pytest.raises(ValueError, match=r"line 1 is not a JSON object: .* or one array"):
        Workload.read(lines(tmp_path, SERVEGEN[:1], SERVEGEN[1:]))


def test_an_optional_field_counts_whichever_record_has_it_first(tmp_path):
    silent = {"prompt_tokens": 9, "output_tokens": 2}
    asks = silent | {"max_tokens": 64}
    for line, records in ((1, (silent, asks)), (2, (asks, silent))):
        with pytest.raises(ValueError, match=f"line {line}: max_tokens is empty"):
            Workload.read(lines(tmp_path, *records))


def test_what_a_first_record_lacks_is_empty_there(tmp_path):
    requests = Workload.read(lines(tmp_path, SESSIONS[0], SESSIONS[2]))
    assert requests.extras["delay"].tolist() == pytest.approx([math.nan, 5], nan_ok=True)
    timed = {"prompt_tokens": 9, "output_tokens": 2, "arrival_s": 4}
    with pytest.raises(ValueError, match="line 1: arrival_s is empty"):
        Workload.read(lines(tmp_path, {"prompt_tokens": 9, "output_tokens": 2}, timed))


def test_objects_within_objects_are_read_however_deep(tmp_path):
    deep = {"usage": {"prompt_tokens": 9, "output_tokens": 2}, "request": {"p": {"max_tokens": 64}}}
    assert Workload.read(lines(tmp_path, deep)).max_tokens.tolist() == [64]


def test_a_name_in_two_objects_of_a_record_is_never_taken_from_one_in_silence(tmp_path):
    both = {
        "estimate": {"prompt_tokens": 9, "output_tokens": 2},
        "usage": {"prompt_tokens": 99, "output_tokens": 20},
    }
    path = lines(tmp_path, both)
    with pytest.raises(ValueError, match=r"columns estimate\.prompt_tokens, .* of no known"):
        Workload.read(path)
    told = Reading.parse("prompt=usage.prompt_tokens,output=usage.output_tokens")
    assert Workload.read(path, told).prompt_tokens.tolist() == [99]
    asked = {"request": {"max_tokens": 8}, "response": {"max_tokens": 64}}
    path = lines(tmp_path, {"prompt_tokens": 9, "output_tokens": 2} | asked)
    with pytest.raises(ValueError, match=r"say --columns max_tokens=request\.max_tokens"):
        Workload.read(path)
    told = Reading.parse("max_tokens=response.max_tokens")
    assert Workload.read(path, told).max_tokens.tolist() == [64]


def test_a_name_twice_in_one_object_is_refused(tmp_path):
    twice = '{"prompt_tokens": 9, "output_tokens": 2, "prompt_tokens": 7}'
    for text in (twice, f"[\n{twice}\n]"):
        (tmp_path / "trace.jsonl").write_text(text)
        with pytest.raises(ValueError, match="prompt_tokens is there 2 times in one object"):
            Workload.read(tmp_path / "trace.jsonl")


def test_a_bad_request_of_an_array_is_named_by_its_number(tmp_path):
    (tmp_path / "trace.json").write_text(json.dumps([*SERVEGEN, {"timestamp": 4}], indent=1))
    with pytest.raises(ValueError, match=r"trace\.json request 3: input_tokens is empty"):
        Workload.read(tmp_path / "trace.json")
    huge = json.dumps([{"timestamp": 0, "input_tokens": 10**400, "output_tokens": 1}])
    (tmp_path / "huge.json").write_text(huge)
    with pytest.raises(ValueError, match=r"request 1: input_tokens 10*\.\.\. is wrong"):
        Workload.read(tmp_path / "huge.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json line 1 is not JSON: it is nested too deeply"):
        Workload.read(tmp_path / "deep.json")


def test_parquet_is_read_like_csv(tmp_path):
    pytest.importorskip("pyarrow")
    prompt, output = zip(*LENGTHS, strict=True)
    frame = pd.DataFrame(
        {
            "TIMESTAMP": pd.to_datetime(["2024-05-10 00:00:00.5", "2024-05-10 00:00:01.0"]),
            "ContextTokens": prompt,
            "GeneratedTokens": output,
            "session_id": ["a", "b"],
        }
    )
    frame.to_parquet(tmp_path / "trace.parquet")
    requests = Workload.read(tmp_path / "trace.parquet")
    assert rows(requests) == [(0, 374, 44), (0.5, 396, 109)]
    assert requests.extras["session_id"].tolist() == ["a", "b"]
    ours = dict(zip(frame, ("arrival_s", "prompt_tokens", "output_tokens"), strict=False))
    frame.rename(columns=ours).to_parquet(tmp_path / "dates.parquet")
    assert rows(Workload.read(tmp_path / "dates.parquet")) == rows(requests)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="is not a parquet file"):
        Workload.read(tmp_path / "bad.parquet")


def test_without_pyarrow_parquet_is_refused_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "trace.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'spyre-bench\[parquet\]'"):
        Workload.read(tmp_path / "trace.parquet")


SESSIONS = [
    {"timestamp": 0, "input_length": 9, "output_length": 2, "session_id": "a", "hash_ids": [1, 2]},
    {"timestamp": 1500, "input_length": 9, "output_length": 2, "session_id": "b", "hash_ids": []},
    {
        "timestamp": 4000,
        "input_length": 9,
        "output_length": 2,
        "session_id": "a",
        "delay": 5,
        "hash_ids": [1, 2, 3],
    },
]


def test_sessions_and_prefixes_stay_with_their_requests(tmp_path):
    (tmp_path / "moon.jsonl").write_text("\n".join(map(json.dumps, SESSIONS)))
    requests = Workload.read(tmp_path / "moon.jsonl")
    assert requests.extras["session_id"].tolist() == ["a", "b", "a"]
    later = requests.scaled(0.5, 2).take(slice(1, None))
    assert later.extras["hash_ids"].tolist() == [[], [1, 2, 3]]
    assert requests.halves()[0].extras["session_id"].tolist() == ["a"]
    for suffix in ("jsonl", "csv"):
        requests.save(tmp_path / f"saved.{suffix}")
        again = Workload.read(tmp_path / f"saved.{suffix}")
        assert again.extras["hash_ids"].tolist() == [[1, 2], [], [1, 2, 3]]
        assert again.extras["session_id"].tolist() == ["a", "b", "a"]


def test_extras_are_of_every_request():
    one = np.ones(2, int)
    with pytest.raises(ValueError, match="session_id has 1 elements for 2 requests"):
        Workload("x", np.zeros(2), one, one, one, extras={"session_id": np.array([1])})


# --- windows --------------------------------------------------------------------------------------


def test_a_window_is_taken_before_the_first_requests_and_before_other_arrivals(tmp_path):
    path = tmp_path / "trace.csv"
    lines = [f"{50 + second},{second + 1},5\n" for second in range(10)]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(lines))
    requests = load_workload(path, from_s=2.5, to_s=8, requests=3)
    assert rows(requests) == [(0.5, 4, 5), (1.5, 5, 5), (2.5, 6, 5)]
    assert "those from 2.5 s to 8 s" in str(requests)
    queued = load_workload(path, from_s=2.5, to_s=5, arrivals="all")
    assert queued.prompt_tokens.tolist() == [4, 5]


@pytest.mark.parametrize("window", [(-1, 5), (5, 5), (math.nan, 5), (2, 1)])
def test_a_window_that_is_none_is_refused(window):
    one = np.ones(2, int)
    with pytest.raises(ValueError, match="is none: start at 0 or later, end after that"):
        Workload("x", np.zeros(2), one, one, one).window(*window)
