import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.workload.arrivals import AllAtOnce, Constant, Gamma, Poisson
from spyre_bench.workload.length_table import WORKLOADS, LengthTable
from spyre_bench.workload.max_tokens import (
    Exact,
    Fixed,
    Multiple,
    Quantile,
    Recorded,
    parse_max_tokens,
)
from spyre_bench.workload.source import load_workload, named_workload
from spyre_bench.workload.workload import Workload

COLUMNS = ["arrival_s", "prompt_tokens", "output_tokens", "max_tokens"]

tokens = st.integers(1, 2**31 - 1)
times_s = st.floats(0, 1e9, allow_subnormal=False)


@st.composite
def workloads(draw, tokens=tokens):
    rows = draw(st.lists(st.tuples(times_s, tokens, tokens, tokens), min_size=1, max_size=30))
    arrival_s, prompt, one, other = zip(*rows, strict=True)
    return Workload(
        "drawn", sorted(arrival_s), prompt, np.minimum(one, other), np.maximum(one, other)
    )


def rng(seed=0):
    return np.random.default_rng(seed)


def workload(arrival_s=(0, 1, 2), prompt=(10, 20, 30), output=(1, 2, 3), max_tokens=None):
    return Workload("mine", arrival_s, prompt, output, output if max_tokens is None else max_tokens)


def rows(requests):
    return [tuple(row) for row in requests.frame().to_numpy().tolist()]


def written(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


# --- the type -------------------------------------------------------------------------------------


def test_columns_are_typed_and_read_only():
    requests = workload()
    assert requests.arrival_s.dtype == np.float64
    assert {getattr(requests, name).dtype for name in COLUMNS[1:]} == {np.dtype(np.int32)}
    with pytest.raises(ValueError, match="read-only"):
        requests.arrival_s[0] = 5


def test_columns_of_the_right_type_are_not_copied():
    arrival_s, tokens = np.zeros(3), np.ones(3, np.int32)
    requests = Workload("mine", arrival_s, tokens, tokens, tokens)
    assert np.shares_memory(requests.arrival_s, arrival_s)
    assert np.shares_memory(requests.prompt_tokens, tokens)
    assert arrival_s.flags.writeable  # the caller's own array stays as it was


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"arrival_s": (0, 2, 1)}, r"arrival_s 1.0 of request 2 .*ascending order"),
        ({"arrival_s": (-1, 0, 1)}, r"arrival_s -1.0 of request 0 .*0 s or later"),
        ({"arrival_s": (0, math.nan, 1)}, r"arrival_s nan of request 1"),
        ({"arrival_s": (0, 1, math.inf)}, r"arrival_s inf of request 2"),
        ({"prompt": (1, 0, 1)}, r"prompt_tokens 0 of request 1 .*1 token or more"),
        ({"output": (1, -2, 1)}, r"output_tokens -2 of request 1 .*1 token or more"),
        ({"prompt": (1, 1, 2.5)}, r"prompt_tokens 2.5 of request 2 .*int32"),
        ({"prompt": (1, 1, 2**31)}, r"prompt_tokens 2147483648 of request 2 .*int32"),
        ({"prompt": ("a", "b", "c")}, r"prompt_tokens a of request 0 .*int32"),
        ({"max_tokens": (1, 1, 3)}, r"output_tokens 2 of request 1 .*at most its max_tokens"),
        ({"prompt": (1, 1)}, r"columns of \[2, 3\] requests"),
        ({"arrival_s": (), "prompt": (), "output": ()}, r"columns of \[0\] requests"),
    ],
)
def test_what_cannot_be_a_workload_is_refused_with_the_request(columns, words):
    with pytest.raises(ValueError, match=words):
        workload(**columns)


def test_parts_keep_rows_whole():
    requests = workload(max_tokens=(4, 5, 6))
    assert rows(requests.head(2)) == [(0, 10, 1, 4), (1, 20, 2, 5)]
    assert rows(requests.take([0, 2])) == [(0, 10, 1, 4), (2, 30, 3, 6)]
    assert rows(requests.take(requests.prompt_tokens > 10)) == [(1, 20, 2, 5), (2, 30, 3, 6)]


def test_quantiles_are_lengths_that_occur():
    requests = workload(prompt=(30, 10, 20), output=(1, 2, 3), max_tokens=(4, 4, 9))
    frame = requests.quantiles([0, 0.5, 0.9, 1]).pivot(
        index="level", columns="length", values="tokens"
    )
    assert frame["prompt_tokens"].tolist() == [10, 20, 30, 30]
    assert frame["output_tokens"].tolist() == [1, 2, 3, 3]
    assert frame["max_tokens"].tolist() == [4, 4, 9, 9]


def test_more_requests_than_there_are_cannot_be_taken():
    with pytest.raises(ValueError, match="has 3 requests: 4 cannot be taken"):
        workload().head(4)
    with pytest.raises(ValueError, match="0 cannot be taken"):
        workload().head(0)


def test_halves_part_by_time_and_the_later_one_starts_anew():
    first, second = workload(arrival_s=(5, 6, 8)).halves()
    assert rows(first) == [(5, 10, 1, 1)]
    assert rows(second) == [(0, 20, 2, 2), (2, 30, 3, 3)]
    with pytest.raises(ValueError, match="1 request: it cannot be halved"):
        first.halves()


# --- files of our own -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
@given(some=workloads())
def test_what_is_saved_reads_back_to_the_last_bit(tmp_path_factory, suffix, some):
    path = tmp_path_factory.mktemp("saved") / f"some.{suffix}"
    some.save(path)
    again = Workload.read(path)
    assert again.name == "some"
    for name in COLUMNS:
        assert getattr(again, name).dtype == getattr(some, name).dtype
        assert (getattr(again, name) == getattr(some, name)).all()


def test_a_saved_file_is_plain_to_read(tmp_path):
    workload(arrival_s=(0, 0.1, 2)).head(2).save(tmp_path / "some.csv")
    assert (tmp_path / "some.csv").read_text() == (
        "arrival_s,prompt_tokens,output_tokens,max_tokens\n0.0,10,1,1\n0.1,20,2,2\n"
    )
    workload().head(1).save(tmp_path / "some.jsonl")
    line = (tmp_path / "some.jsonl").read_text()
    assert json.loads(line) == dict(zip(COLUMNS, (0.0, 10, 1, 1), strict=True))
    assert {path.name for path in tmp_path.iterdir()} == {"some.csv", "some.jsonl"}


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"use \.csv or \.jsonl"):
        workload().save(tmp_path / "some.parquet")


def test_times_of_our_own_files_are_kept_as_they_are(tmp_path):
    path = written(tmp_path, "arrival_s,prompt_tokens,output_tokens\n5,10,1\n7.5,20,2\n")
    assert rows(Workload.read(path)) == [(5, 10, 1, 1), (7.5, 20, 2, 2)]


# --- the publishers' files ------------------------------------------------------------------------

READ = [(0, 374, 44, 44), (0.5, 396, 109, 109)]

FILES = {
    "azure 2023, CRLF": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:47.1805900,396,109\r\n"
    ),
    "azure 2024, with time zone": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.500000+00:00,374,44\n"
        "2024-05-10 00:00:01+00:00,396,109\n"
    ),
    "azure 2025, one column more": (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        "2025-05-10 00:00:00.5,0,374,44\n2025-05-10 00:00:01.0,1,396,109\n"
    ),
    "burstgpt, 6 columns": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,374,44,418,Conversation log\n5.5,GPT-4,396,109,505,API log\n"
    ),
    "burstgpt, 8 columns": (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n5,1,2.5,ChatGPT,374,44,418,API log\n5.5,2,1,GPT-4,396,109,505,API log\n"
    ),
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n1.0,374,44\n1.5,396,109\n",
    "splitwise": (
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,"
        "token_size\n0,2,0,1.0,1,374,44\n1,2,0,1.5,1,396,109\n"
    ),
    "byte order mark, spaces, blank last line": (
        "\ufeffarrival_s, prompt_tokens, output_tokens\n0,374,44\n0.5,396,109\n\n"
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_publishers_csv_is_read_by_its_column_names(tmp_path, kind):
    assert rows(Workload.read(written(tmp_path, FILES[kind]))) == READ


def test_mooncake_counts_milliseconds(tmp_path):
    text = (
        '{"timestamp": 1000, "input_length": 374, "output_length": 44, "hash_ids": [1, 2]}\n\n'
        '{"timestamp": 1500, "input_length": 396, "output_length": 109, "hash_ids": []}\n'
    )
    assert rows(Workload.read(written(tmp_path, text, "trace.jsonl"))) == READ


def test_seven_decimals_of_azure_are_kept(tmp_path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,1,1\n2023-11-16 18:15:46.6805901,1,1\n"
    )
    assert Workload.read(written(tmp_path, text)).arrival_s[1] == pytest.approx(1e-7, rel=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "prompt_tokens,output_tokens\n374,44\n396,109\n",
        "arrival_s,prompt_tokens,output_tokens\n,374,44\n,396,109\n",
        "num_prefill_tokens,num_decode_tokens,pd_ratio\n374,44,8.5\n396,109,3.6\n",
    ],
)
def test_lists_of_lengths_arrive_all_at_zero(tmp_path, text):
    assert rows(Workload.read(written(tmp_path, text))) == [(0, 374, 44, 44), (0, 396, 109, 109)]


def test_failed_requests_of_burstgpt_are_left_out_and_counted(tmp_path):
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "1,ChatGPT,9,0,9,API log\n5,ChatGPT,374,44,418,API log\n"
        "5.2,ChatGPT,9,0,9,API log\n5.5,GPT-4,396,109,505,API log\n"
    )
    requests = Workload.read(written(tmp_path, text))
    assert rows(requests) == READ
    assert requests.note == "2 failed requests left out"
    assert Workload.read(written(tmp_path, FILES["vidur"])).note == ""


@pytest.mark.parametrize(
    ("name", "requests"),
    [
        ("azure_conv_2023", 19366),
        ("azure_code_2023", 8819),
        ("burstgpt_first7days", 17893),
        ("mooncake_conversation", 12031),
        ("fmperf_ibm_production", 20000),
        ("sharegpt_8k", 20000),
        ("arxiv_summarization", 20000),
    ],
)
def test_the_shared_traces_read_whole(shared, name, requests):
    drawn = load_workload(shared / "traces" / f"{name}.csv.gz")
    assert (drawn.name, len(drawn)) == (name, requests)


# --- files that are wrong -------------------------------------------------------------------------

OURS = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: it needs a line of column names"),
        (OURS, "holds no requests"),
        (OURS + "\n\n", "holds no requests"),
        ("a,b\n1,2\n", "columns a, b, of no known.*TIMESTAMP, ContextTokens.*input_length"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "of no known trace format"),
        (OURS + "0,5,5\n1,-5,5\n", "line 3: prompt_tokens -5 is wrong: .*1 or more: mend that"),
        (OURS + "0,5,5\n1,5,0\n", "line 3: output_tokens 0 is wrong"),
        (OURS + "0,5,5\n\n1,5,0\n", "line 4: output_tokens 0 is wrong"),
        (OURS + "0,5.5,5\n", "line 2: prompt_tokens 5.5 is wrong"),
        (OURS + "0,5,5\n1,many,5\n", "line 3: prompt_tokens many is wrong"),
        (OURS + "0,nan,5\n", "line 2: prompt_tokens nan is wrong"),
        (OURS + "0,True,5\n", "line 2: prompt_tokens True is wrong"),
        (OURS + "0,3000000000,5\n", "line 2: prompt_tokens 3000000000 is wrong"),
        (OURS + "0,5,5\n1,5\n", "line 3: output_tokens is empty"),
        (OURS + "0,5,5\n,5,5\n", "line 3: arrival_s is empty, .*for every request or for none"),
        (OURS + "0,5,5\nsoon,5,5\n", "line 3: arrival_s soon is wrong: it must be a number"),
        (OURS + "0,5,5\ninf,5,5\n", "line 3: arrival_s inf is wrong"),
        (OURS + "-1,5,5\n0,5,5\n", "line 2: arrival_s -1 is wrong: times count from 0"),
        (OURS + "0,5,5\n2,5,5\n1,5,5\n", "line 4: arrival_s 1.* earlier than the line before"),
        (OURS + "0,5,5,5\n0,5,5,5\n", "not a CSV table"),
        (OURS + "0,5,5\n0,5,5,5\n", "not a CSV table: .*line 3"),
        ("prompt_tokens, prompt_tokens,output_tokens\n1,2,3\n", "line 1 has 2 columns called pro"),
        ("Export of May\n" + OURS + "0,5,5\n", "line 2 there are more values .*title above"),
        ("prompt_tokens,output_tokens,max_tokens\n5,5,4\n", "line 2: max_tokens 4 is wrong"),
        ("prompt_tokens,output_tokens,max_tokens\n5,5,9\n5,5,\n", "line 3: max_tokens is empty"),
        (AZURE + "2023-11-16 18:15:46,5,5\nyesterday,5,5\n", "line 3: TIMESTAMP yesterday .*date"),
        (AZURE + "12,5,5\n", "nothing says in which unit TIMESTAMP is"),
        (AZURE + ",5,5\n", "TIMESTAMP is empty in every line"),
        (
            AZURE + "2023-11-16 18:15:47,5,5\n2023-11-16 18:15:46,5,5\n",
            "line 3: TIMESTAMP 2023-11-16 18:15:46 is wrong: earlier",
        ),
        ("Timestamp,Request tokens,Response tokens\n0,5,0\n", "all 1 requests failed"),
        ("Timestamp,Request tokens,Response tokens\n0,5,x\n", "line 2: Response tokens x"),
    ],
)
def test_a_bad_csv_is_refused_with_file_line_and_rule(tmp_path, text, words):
    with pytest.raises(ValueError, match=rf"(?s)trace\.csv.*{words}"):
        Workload.read(written(tmp_path, text))


MOON = '{"timestamp": 0, "input_length": 5, "output_length": 5}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: it needs one JSON object per line"),
        ("{oops\n", "line 1 is not JSON"),
        ("[1, 2]\n", "line 1 is not a JSON object"),
        ('{"a": 1}\n', "columns a, of no known trace format"),
        ("{}\n", r"columns \(none\), of no known"),
        (MOON + '{"timestamp": 1, "output_length": 5}\n', "line 2: input_length is empty"),
        (MOON + "\n" + MOON.replace("5", '"5"'), "line 3: input_length '5' is not a number"),
        (MOON.replace("5", "true"), "line 1: input_length True is not a number"),
        (MOON.replace("5", "-5"), "line 1: input_length -5 is wrong"),
        (MOON.replace(" 0", " 9") + MOON, "line 2: timestamp 0 is wrong: earlier"),
    ],
)
def test_a_bad_jsonl_is_refused_with_file_line_and_rule(tmp_path, text, words):
    with pytest.raises(ValueError, match=rf"trace\.jsonl.*{words}"):
        Workload.read(written(tmp_path, text, "trace.jsonl"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trace.csv", b"\xff\xfe\x00garbage"),
        ("trace.csv", gzip.compress(OURS.encode(), mtime=0)),  # the wrong suffix
        ("trace.csv.gz", OURS.encode()),
        ("trace.csv.gz", gzip.compress(OURS.encode() * 1000, mtime=0)[:-20]),  # cut off
        ("trace.csv.gz", gzip.compress(b"", mtime=0)[:10] + b"garbage" * 9),
        ("trace.jsonl.gz", b"garbage"),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_the_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not readable as .*UTF-8 text"):
        load_workload(tmp_path / name)


# --- max_tokens -----------------------------------------------------------------------------------


def test_without_a_policy_clients_know_the_length_of_their_answer():
    assert workload().max_tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("policy", "max_tokens", "output"),
    [
        (Exact(), [1, 2, 3, 10], [1, 2, 3, 10]),
        (Recorded(), [1, 4, 4, 12], [1, 2, 3, 10]),
        (Fixed(3), [3, 3, 3, 3], [1, 2, 3, 3]),
        (Multiple(1.5), [2, 3, 5, 15], [1, 2, 3, 10]),
        (Multiple(1.1), [2, 3, 4, 11], [1, 2, 3, 10]),
        (Quantile(0.5), [3, 3, 3, 3], [1, 2, 3, 3]),
        (Quantile(1.0), [10, 10, 10, 10], [1, 2, 3, 10]),
    ],
)
def test_a_policy_sets_max_tokens_and_longer_answers_are_cut_there(policy, max_tokens, output):
    requests = workload(
        arrival_s=(0, 0, 0, 0), prompt=(1, 1, 1, 1), output=(1, 2, 3, 10), max_tokens=(1, 4, 4, 12)
    )
    changed = requests.with_max_tokens(policy)
    assert changed.max_tokens.tolist() == max_tokens
    assert changed.output_tokens.tolist() == output
    assert ("1 of 4 outputs short" in str(changed)) == (output[-1] < 10)
    assert requests.output_tokens.tolist() == [1, 2, 3, 10]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("exact", Exact()),
        ("recorded", Recorded()),
        ("fixed:256", Fixed(256)),
        ("multiple:2", Multiple(2.0)),
        ("quantile:0.99", Quantile(0.99)),
    ],
)
def test_policies_read_from_text(text, policy):
    assert parse_max_tokens(text) == policy
    assert parse_max_tokens(policy) is policy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fix:256", "max_tokens 'fix:256' is unknown: did you mean fixed.*fixed:256"),
        ("fixed", "too many numbers or too few: write, for example, fixed:256"),
        ("fixed:2.5", "Fixed tokens 2.5 is not a whole number"),
        ("fixed:0", "Fixed tokens 0.0 is not a whole number"),
        ("fixed:nan", "Fixed tokens nan is not a whole number"),
        ("multiple:0.5", "Multiple factor 0.5 is below 1"),
        ("quantile:99", "Quantile q 99.0 is not within 0 and 1"),
    ],
)
def test_bad_policies_are_refused_with_an_example(text, words):
    with pytest.raises(ValueError, match=words):
        parse_max_tokens(text)


# --- scaling --------------------------------------------------------------------------------------


def test_scaling_shrinks_lengths_rounded_up_and_quickens_arrivals():
    requests = workload(prompt=(8, 9, 1000), output=(1, 8, 16), max_tokens=(1, 9, 24))
    assert rows(requests.scaled(lengths=0.125, rate=2.0)) == [
        (0, 1, 1, 1),
        (0.5, 2, 1, 2),
        (1, 125, 2, 3),
    ]


def test_scaling_has_no_rounding_errors():
    requests = workload(prompt=(30, 70, 110), output=(1, 1, 1))
    assert requests.scaled(lengths=0.1).prompt_tokens.tolist() == [3, 7, 11]


@given(workloads(st.integers(1, 100_000)), st.floats(0.001, 10), st.floats(0.001, 1000))
def test_a_scaled_workload_is_a_workload_of_as_many_requests(requests, lengths, rate):
    scaled = requests.scaled(lengths=lengths, rate=rate)
    assert len(scaled) == len(requests)
    assert (scaled.prompt_tokens >= requests.prompt_tokens * lengths - 1e-5).all()
    assert (scaled.prompt_tokens < requests.prompt_tokens * lengths + 1).all()


@given(workloads())
def test_scaling_by_one_changes_nothing(requests):
    assert rows(requests.scaled()) == rows(requests)


@pytest.mark.parametrize("factor", [0, -1, math.inf, math.nan])
def test_scaling_by_no_positive_number_is_refused(factor):
    with pytest.raises(ValueError, match=r"scaled lengths .* is not a positive number"):
        workload().scaled(lengths=factor)
    with pytest.raises(ValueError, match=r"scaled rate .* is not a positive number"):
        workload().scaled(rate=factor)


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_workload_and_another_seed_another(name):
    one, two, other = (named_workload(name, 500, rng(seed)) for seed in (7, 7, 8))
    assert (one.name, len(one)) == (name, 500)
    assert rows(one) == rows(two)
    assert rows(one) != rows(other)


def test_named_workloads_arrive_as_poisson_at_the_rate_of_their_source():
    requests = named_workload("azure_conv", 100_000, rng())
    assert requests.requests_per_s == pytest.approx(5.53, rel=0.02)
    gaps_s = np.diff(requests.arrival_s)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1, rel=0.02)


def test_named_workloads_without_times_arrive_all_at_once():
    requests = named_workload("sharegpt", 10, rng())
    assert not requests.arrival_s.any()
    assert requests.requests_per_s == math.inf


@pytest.mark.parametrize("arrivals", ["all", AllAtOnce(), "gamma:2,0.5", Poisson(9.0)])
def test_the_lengths_do_not_depend_on_the_arrivals(arrivals):
    one = named_workload("azure_conv", 100, rng(5))
    other = named_workload("azure_conv", 100, rng(5), arrivals)
    assert (one.prompt_tokens == other.prompt_tokens).all()
    assert (one.output_tokens == other.output_tokens).all()
    assert (one.arrival_s != other.arrival_s).any()


def test_a_named_workload_has_nothing_to_replay():
    with pytest.raises(ValueError, match="give the trace file itself"):
        load_workload("azure_conv", rng=rng(), arrivals="replay")


def test_a_named_workload_needs_a_generator_and_a_request():
    with pytest.raises(ValueError, match=r"pass rng=numpy.random.default_rng"):
        load_workload("azure_conv")
    with pytest.raises(ValueError, match="0 requests are too few"):
        load_workload("azure_conv", requests=0, rng=rng())


def test_an_unknown_name_is_refused_with_the_nearest_and_all_known():
    with pytest.raises(ValueError, match=r"no such file: did you mean azure_conv\?.*sharegpt"):
        load_workload("azure_con", rng=rng())
    with pytest.raises(ValueError, match=r"'none.csv' is unknown, and there is no such file"):
        load_workload("none.csv", rng=rng())


def test_loading_a_name_draws_ten_thousand_requests_unless_told():
    assert len(load_workload("azure_code", rng=rng())) == 10_000
    assert len(load_workload("azure_code", requests=7, rng=rng())) == 7


def test_loading_a_file_takes_its_first_requests_as_they_are(tmp_path):
    path = tmp_path / "mine.csv"
    workload(max_tokens=(4, 5, 6)).save(path)
    assert rows(load_workload(path, requests=2)) == [(0, 10, 1, 4), (1, 20, 2, 5)]
    assert rows(load_workload(str(path))) == rows(workload(max_tokens=(4, 5, 6)))
    assert rows(load_workload(path, arrivals="replay")) == rows(load_workload(path))


def test_loading_a_file_under_other_circumstances(tmp_path):
    path = tmp_path / "mine.csv"
    workload().save(path)
    requests = load_workload(path, arrivals="constant:2", max_tokens="fixed:2")
    assert rows(requests) == [(0.5, 10, 1, 2), (1, 20, 2, 2), (1.5, 30, 2, 2)]
    assert rows(requests) == rows(workload().with_arrivals(Constant(2.0)).with_max_tokens(Fixed(2)))


def test_a_table_of_ones_own_works_like_a_name(tmp_path):
    path = tmp_path / "ours.csv"
    LengthTable.fit(np.array([10, 20]), np.array([1, 2]), 4.0).write(path)
    requests = load_workload(path, requests=50_000, rng=rng(), max_tokens="multiple:2")
    assert requests.name == "ours"
    assert set(
        zip(requests.prompt_tokens, requests.output_tokens, requests.max_tokens, strict=True)
    ) == {
        (10, 1, 2),
        (20, 2, 4),
    }
    assert requests.requests_per_s == pytest.approx(4, rel=0.02)


def test_other_arrivals_are_drawn_from_the_generator_alone():
    one, two = (workload().with_arrivals(Gamma(1.0, 0.5), rng(3)) for _ in range(2))
    assert rows(one) == rows(two)
    assert one.prompt_tokens.tolist() == [10, 20, 30]
