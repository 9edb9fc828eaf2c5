"""The published step tables of IBM's own scheduler (sendnn-inference, earlier vllm-spyre), step by
step: tests/e2e/test_spyre_{cp,pc,decode_pause,holdback}_scheduler_steps.py.

A line of a table is

    step tkv waiting running outputs ended used+reserved [tables]

after that pass: tkv is the longest row of a decode pass or the prompt of a chunk; running are those
that are not paused; outputs who got a token; then the blocks that somebody holds and those kept for
later. Names are in the order of admission, - is nobody, ? is not published.

Where we differ, on purpose:
- A prefix hit inside of a chunk: theirs takes the blocks of a whole chunk behind the hit, ours
  those of the chunk that is computed. Used and reserved add up to the same.
- Which block is taken: theirs was written with a vLLM that took the blocks longest free, ours is
  vLLM 0.32, which takes those without a prefix first (step 9 of a full batch: theirs 3 and 4, ours
  2 and 1).
- tkv of a chunk: two lines of theirs have an earlier meaning, in which it counted the other rows:
  256 at step 68 (ours 193), and 64 at the first chunk of a padded hit (ours 320).
- Under `hold` a request that must wait is overtaken at theirs by later ones that may join. Ours
  waits at the head of the queue, so that it cannot starve.
- Under `hold` theirs goes by the tkv of the pass before, with rows that ended in it. Ours goes by
  the rows that are left.
- Of rows that paused equally long and have equally many outputs, theirs takes who stands first in
  its list of running requests: the newest, but for rows that paused. Ours takes the newest.
- Theirs refuses a request whose prompt, rounded up to blocks, and max_tokens exceed the length of
  the model. Ours does not round. Contexts are whole blocks here: 514 and 124 became 576 and 128.
- Not here are tables of an earlier version, which held a request whose padding would have pushed
  another row over the length of the model, and a draft that exceeds the limit (holdback, step 10).
"""

from dataclasses import dataclass, replace

import pytest

from spyre_bench.policy.continuous import UPSTREAM, Decode, Prefill, Rules
from spyre_bench.shape_set import BLOCK_TOKENS, ShapeSet
from tests.policy.engine_host import Host, Request

HOLD = replace(UPSTREAM, over_limit="hold")
NO_PASS_BETWEEN = replace(UPSTREAM, decode_between=0)


@dataclass
class Load:
    """Prompt, max_tokens, the step after which it comes, and the prefixes of its blocks."""

    requests: list[tuple]
    rows: int = 2
    chunk: int = 128
    length: int = 128
    blocks: int | None = None  # without the dummy

    def host(self, rules: Rules) -> Host:
        blocks = self.blocks or self.rows * self.length // BLOCK_TOKENS
        shapes = f"{self.chunk},{self.length}", f"{self.rows},{self.length}"
        return Host(ShapeSet.parse(*shapes, blocks=blocks + 1), rules)

    def log(self, rules: Rules) -> dict[int, list[str]]:
        """Every step in fields, until everybody has ended."""
        host = self.host(rules)
        to_come = [
            (at, Request(str(name), prompt, limit, limit, prefixes=prefixes))
            for name, (prompt, limit, at, *prefixes) in enumerate(self.requests)
        ]
        lines: dict[int, list[str]] = {}
        while to_come or host.waiting or host.running:
            while to_come and to_come[0][0] <= host.steps:
                host.add(to_come.pop(0)[1])
            step, ended = host.step()
            while to_come and to_come[0][0] <= host.steps:
                host.add(to_come.pop(0)[1])
            lines[host.steps] = fields(host, step, ended)
        assert host.pool.free_blocks == host.costs.blocks - 1
        return lines


def fields(host: Host, step, ended: list[Request]) -> list[str]:
    def names(requests) -> str:
        return "".join(sorted(request.name for request in requests)) or "-"

    if isinstance(step, Prefill):
        tkv, outputs = step.request.prompt, [step.request] if step.is_last else []
    else:
        tkv, outputs = step.context_tokens, list(step.rows)
    used = host.costs.blocks - 1 - host.pool.free_blocks
    reserved = sum(request.reserved_blocks for request in host.running)
    tables = [f"{r.name}:{','.join(map(str, r.table))}" for r in host.running]
    return [
        str(tkv),
        names(host.waiting),
        names(request for request in host.running if not request.paused_for),
        names(outputs),
        names(ended),
        f"{used}+{reserved}",
        " ".join(tables),
    ]


def assert_table(table: str, log: dict[int, list[str]]) -> None:
    """The published steps are those of the log, and the last is its last."""
    published = [line.split(None, 7) for line in table.strip().splitlines()]
    steps = [int(line[0]) for line in published]
    ours = []
    for step, line in zip(steps, published, strict=True):
        line[6] = line[6].replace("?", log[step][5].split("+")[1])
        ours.append([str(step), *log[step]][: len(line)])
    assert ours == published
    assert steps[-1] == max(log)


def test_a_rows_padding_goes_where_it_begins_a_block_so_no_row_exceeds_the_context():
    assert_table(
        """
        1   60 1 0  0  - 1+1
        2   61 1 0  0  - 1+1
        3  111 - 01 1  - 3+1
        4  126 - 01 01 - 3+1
        6  128 - 01 01 - 3+1
        7  115 - 01 01 - 4+0
        11 119 - 1  01 0 2+0
        12 120 - 1  1  - 2+0
        19 127 - -  1  1 0+0
        """,
        Load([(60, 10, 0), (111, 17, 0)]).log(UPSTREAM),
    )


@pytest.mark.parametrize("over_limit", ["pause", "hold"])
def test_two_rows_over_the_limit_run_one_after_the_other(over_limit):
    rules = replace(UPSTREAM, over_limit=over_limit, max_batch_context_tokens=129)
    assert_table(
        """
        1 64 1 0 0 - 1+1
        2 65 1 - 0 0 0+0
        3 65 - 1 1 - 2+0
        4 66 - - 1 1 0+0
        """,
        Load([(64, 2, 0), (65, 2, 0)]).log(rules),
    )


def test_a_long_prompt_takes_its_blocks_chunk_by_chunk():
    assert_table(
        """
        1 512 - 0 - - 2+7
        2 512 - 0 - - 4+5
        3 512 - 0 - - 6+3
        4 512 - 0 0 - 8+1
        5 513 - - 0 0 0+0
        """,
        Load([(512, 2, 0)], length=576).log(UPSTREAM),
    )


def test_chunks_of_a_prompt_longer_than_the_tkv_take_turns_with_decode_passes():
    assert_table(
        """
        1   10 1 0  0  -  1+0
        2   11 1 0  0  -  1+0
        3  512 - 01 -  -  3+7
        4   12 - 01 0  -  3+7
        5  512 - 01 -  -  5+5
        6   13 - 01 0  -  5+5
        7  512 - 01 -  -  7+3
        8   14 - 01 0  -  7+3
        9  512 - 01 1  -  9+1
        10 527 - 01 01 -  10+0
        11 528 - 01 01 -  10+0
        12 529 - -  01 01 0+0
        """,
        Load([(10, 8, 0), (512, 4, 0)], length=2048).log(UPSTREAM),
    )


def test_without_turns_a_prompt_is_prefilled_in_a_row():
    assert_table(
        """
        1   10 1 0  0  - 1+0
        2  512 - 01 -  - 3+7
        3  512 - 01 -  - 5+5
        4  512 - 01 -  - 7+3
        5  512 - 01 1  - 9+1
        6  523 - 01 01 - 10+0
        7  524 - 01 01 - 10+0
        8  525 - 0  01 1 1+0
        9   14 - 0  0  - 1+0
        10  15 - 0  0  - 1+0
        11  16 - 0  0  - 1+0
        12  17 - -  0  0 0+0
        """,
        Load([(10, 8, 0), (512, 4, 0)], length=2048).log(NO_PASS_BETWEEN),
    )


def test_a_prompt_that_comes_while_others_decode_joins_them():
    assert_table(
        """
        1   10 - 0  0  - 1+0
        2   11 - 0  0  - 1+0
        3   12 1 0  0  - 1+0
        4  512 - 01 -  - 3+7
        5   13 - 01 0  - 3+7
        6  512 - 01 -  - 5+5
        7   14 - 01 0  - 5+5
        8  512 - 01 -  - 7+3
        9   15 - 01 0  - 7+3
        10 512 - 01 1  - 9+1
        11 528 - 01 01 - 10+0
        12 529 - 1  01 0 9+0
        13 515 - -  1  1 0+0
        """,
        Load([(10, 8, 0), (512, 4, 3)], length=2048).log(UPSTREAM),
    )


def test_a_full_pool_keeps_the_next_waiting():
    assert_table(
        """
        1 64 1 0 0 - 1+1
        2 65 1 0 0 - 2+0
        3 66 1 - 0 0 0+0
        4 64 - 1 1 - 1+1
        5 65 - - 1 1 0+0
        """,
        Load([(64, 3, 0), (64, 2, 0)], chunk=64, blocks=2).log(UPSTREAM),
    )


MIXED = Load([(15, 11, 0), (15, 13, 0), (66, 10, 0)], rows=4)


def test_rows_over_the_limit_pause_in_turn():
    assert_table(
        """
        1  15 12 0   0   - 1+? 0:1
        2  16 12 0   0   - 1+? 0:1
        3  15 2  01  1   - 2+? 0:1 1:2
        4  17 2  01  01  - 2+? 0:1 1:2
        5  66 -  012 2   - 4+? 0:1 1:2 2:3,4
        6  82 -  012 012 - 4+? 0:1 1:2 2:3,4
        9  85 -  012 012 - 4+? 0:1 1:2 2:3,4
        10 85 -  12  12  - 4+? 0:1 1:2 2:3,4
        11 86 -  02  02  - 4+? 0:1 1:2 2:3,4
        12 86 -  12  12  - 4+? 0:1 1:2 2:3,4
        13 87 -  02  02  - 4+? 0:1 1:2 2:3,4
        14 87 -  1   12  2 2+? 0:1 1:2
        15 24 -  01  01  - 2+? 0:1 1:2
        16 25 -  1   01  0 1+? 1:2
        17 26 -  1   1   - 1+? 1:2
        18 27 -  -   1   1 0+?
        """,
        MIXED.log(replace(UPSTREAM, max_batch_context_tokens=256)),
    )


@pytest.mark.parametrize(("limit", "outputs"), [(258, "012"), (257, "12")])
def test_a_limit_just_met_pauses_nobody(limit, outputs):
    """Step 10 would be three rows of 86."""
    log = MIXED.log(replace(UPSTREAM, max_batch_context_tokens=limit))
    assert log[9][3] == "012"
    assert log[10][3] == outputs


def test_the_rows_with_the_most_outputs_go_first_where_asked_for():
    """Their option for long outputs: at step 10 row 2 pauses, so tkv falls back by a block."""
    log = MIXED.log(replace(UPSTREAM, max_batch_context_tokens=256, longest_first=True))
    assert [log[10][index] for index in (0, 3)] == ["22", "01"]


def test_of_equals_the_newest_goes_first():
    rules = replace(NO_PASS_BETWEEN, max_batch_context_tokens=128)
    log = Load([(20, 4, 0), (20, 4, 0), (20, 4, 0)], rows=4).log(rules)
    assert [log[step][3] for step in (1, 2, 3, 4)] == ["0", "1", "2", "012"]
    long = Load([(60, 4, 0), (60, 4, 0), (60, 4, 0)], rows=4).log(rules)
    assert [long[step][3] for step in (4, 5)] == ["12", "02"]


def test_a_full_batch_keeps_the_next_waiting():
    assert_table(
        """
        1  25 12 0  0  -  1+? 0:1
        2  26 12 0  0  -  1+? 0:1
        3  25 2  01 1  -  2+? 0:1 1:2
        4  27 2  01 01 -  2+? 0:1 1:2
        5  28 2  01 01 -  2+? 0:1 1:2
        8  31 2  -  01 01 0+?
        9  66 -  2  2  -  2+?
        10 67 -  2  2  -  2+?
        11 68 -  -  2  2  0+?
        """,
        Load([(25, 7, 0), (25, 6, 0), (66, 3, 0)]).log(
            replace(UPSTREAM, max_batch_context_tokens=256)
        ),
    )


LENGTHS = [1018] + [1024] * 15
SHORT, LONG = (15, 60, 0), (66, 60, 0)


@pytest.mark.parametrize(
    ("requests", "limit", "step"),
    [
        ([SHORT, SHORT], 2 * (128 + 64), 3),  # each ends within two blocks, and one of slack
        ([SHORT, SHORT, LONG], 3 * (128 + 64), 5),
        ([(15, 6, 0), SHORT, SHORT], 3 * (64 + 64), 5),  # the first ends before the others grow
        ([(15, 60, 0), (15, 6, 0)], 2 * (64 + 64), 3),  # so does a newcomer
        ([(15, 50, 0), (15, 49, 0)], 2 * (64 + 64), 3),  # its last token is never stored
        ([(15, 51, 0), (15, 51, 0)], 2 * (128 + 64), 3),
        ([(60, 5, 0), (65, 60, 0)], 2 * (128 + 64), 3),  # rows are padded to the newcomer's blocks
        ([(65, 99, 0), (60, 5, 0)], 2 * (128 + 64), 3),  # and the newcomer to theirs
        ([(65, 99, 0), (60, 6, 0)], 2 * (192 + 64), 3),
    ],
)
def test_held_is_who_could_exceed_the_limit_later_and_nobody_at_the_limit(requests, limit, step):
    """By hand from their newest rule; they publish no table of it but that of two rows above."""
    newest = str(len(requests) - 1)
    joins, waits = (
        Load(requests, rows=4, length=256).log(replace(HOLD, max_batch_context_tokens=most))
        for most in (limit, limit - 1)
    )
    assert joins[step][3] == newest
    assert (waits[step][1], waits[step][3]) == (newest, "".join(map(str, range(len(requests) - 1))))


@pytest.mark.parametrize(("decode_between", "first_chunk"), [(1, 3), (0, 11)])
def test_held_is_the_last_chunk_or_the_first_where_chunks_come_in_a_row(
    decode_between, first_chunk
):
    rules = replace(HOLD, decode_between=decode_between, max_batch_context_tokens=256)
    log = Load([(10, 10, 0), (200, 10, 0)], length=256).log(rules)
    assert [log[step][1] for step in (first_chunk - 1, first_chunk)] == ["1", "-"]
    end = min(step for step, line in log.items() if line[4] == "0")
    assert "1" not in "".join(log[step][3] for step in range(1, end + 1))


@pytest.mark.parametrize("over_limit", ["pause", "hold"])
@pytest.mark.parametrize(
    ("requests", "later", "outputs"),
    [
        ([(length, 16384) for length in (940, 412, 969, 949, 11946)], [], 0),
        ([(length, 7168) for length in LENGTHS], [(length, 900) for length in LENGTHS], 2920),
    ],
)
def test_the_loads_that_once_exceeded_their_limit_stay_within_ours(
    requests, later, outputs, over_limit
):
    """Theirs: tests/v1/worker/test_scheduler_tkv_limits.py. The later ones come when the first has
    so many outputs. Held is who waits, so nobody pauses."""
    limit = 131_072
    rules = replace(UPSTREAM, over_limit=over_limit, max_batch_context_tokens=limit)
    host = Host(ShapeSet.parse("512,32768", "32,32768", blocks=32769), rules)
    first, *_ = served = [Request(str(at), p, m, m) for at, (p, m) in enumerate(requests)]
    to_come = [Request(f"later {at}", p, m, m) for at, (p, m) in enumerate(later)]
    for request in served:
        host.add(request)
    paused = False
    for step, _ in host.run():
        if isinstance(step, Decode):
            assert len(step.rows) * step.context_tokens <= limit
            paused = paused or any(request.paused_for for request in host.running)
        if first.done >= outputs:
            while to_come:
                host.add(to_come.pop())
    assert paused == (over_limit == "pause")


# Prefix hits. Blocks of 64 tokens stand for their tokens and all before them.
SAME = tuple("abcdefgh")


def assert_hits(requests: list[tuple], table: str, rules: Rules = NO_PASS_BETWEEN, **load) -> None:
    assert_table(table, Load(requests, **({"length": 256} | load)).log(rules))


def test_a_hit_shares_the_blocks_of_a_running_request():
    assert_hits(
        [(192, 2, 0, *SAME), (192, 2, 0, *SAME)],
        """
        1 192 1 0  -  -  1+3 0:1
        2 192 1 0  0  -  3+1 0:1,2,3
        3 192 - 01 1  -  4+2 0:1,2,3 1:1,2,4
        4 193 - -  01 01 0+0
        """,
    )


def test_a_prompt_of_one_chunk_shares_its_whole_blocks_and_is_computed_again():
    assert_hits(
        [(70, 2, 0, *SAME), (70, 2, 0, *SAME)],
        """
        1 70 1 0  0  -  2+0 0:1,2
        2 70 - 01 1  -  3+0 0:1,2 1:1,3
        3 71 - -  01 01 0+0
        """,
    )


def test_a_hit_may_end_in_a_block_of_outputs():
    assert_hits(
        [(126, 68, 0, *SAME[:2]), (193, 2, 67, *SAME[:2])],
        """
        1  126 - 0  0  -  2+2
        2  127 - 0  0  -  2+2
        4  129 - 0  0  -  3+1
        67 192 1 0  0  -  3+1
        68 193 - 01 1  -  5+1 0:1,2,3 1:1,2,4,5
        69 194 - -  01 01 0+0
        """,
    )


def test_a_hit_finds_the_blocks_of_a_request_that_ended():
    assert_hits(
        [(192, 2, 0, *SAME), (192, 2, 3, *SAME)],
        """
        1 192 - 0 - - 1+3
        2 192 - 0 0 - 3+1 0:1,2,3
        3 193 1 - 0 0 0+0
        4 192 - 1 1 - 3+1 1:1,2,4
        5 193 - - 1 1 0+0
        """,
    )


THIRD_IS_FIRST = [(192, 2, 0, *SAME), (192, 2, 3), (192, 2, 6, *SAME)]


def test_a_small_pool_forgets_a_prefix():
    assert_hits(
        THIRD_IS_FIRST,
        """
        1 192 - 0 - - 1+3
        2 192 - 0 0 - 3+1
        3 193 1 - 0 0 0+0
        4 192 - 1 - - 1+3
        5 192 - 1 1 - 3+1
        6 193 2 - 1 1 0+0
        7 192 - 2 - - 1+3
        8 192 - 2 2 - 3+1
        9 193 - - 2 2 0+0
        """,
        blocks=4,
    )


def test_a_larger_pool_keeps_it():
    assert_hits(
        THIRD_IS_FIRST,
        """
        1 192 - 0 - - 1+3
        2 192 - 0 0 - 3+1
        3 193 1 - 0 0 0+0
        4 192 - 1 - - 1+3
        5 192 - 1 1 - 3+1
        6 193 2 - 1 1 0+0
        7 192 - 2 2 - 3+1
        8 193 - - 2 2 0+0
        """,
        blocks=8,
    )


def test_three_share_a_prefix_beside_a_stranger():
    assert_hits(
        [(192, 2, 0, *SAME), (192, 2, 0, *SAME), (192, 2, 0), (192, 2, 0, *SAME)],
        """
        1 192 123 0    -    -    1+3 0:1
        2 192 123 0    0    -    3+1 0:1,2,3
        3 192 23  01   1    -    4+2 0:1,2,3 1:1,2,4
        4 192 3   012  -    -    5+5 0:1,2,3 1:1,2,4 2:5
        5 192 3   012  2    -    7+3 0:1,2,3 1:1,2,4 2:5,6,7
        6 192 -   0123 3    -    8+4 0:1,2,3 1:1,2,4 2:5,6,7 3:1,2,8
        7 193 -   -    0123 0123 0+0
        """,
        rows=4,
    )


def test_the_last_chunk_is_computed_though_all_its_blocks_but_one_are_shared():
    assert_hits(
        [(384, 2, 0, *SAME), (384, 2, 0, *SAME)],
        """
        1 384 1 0  -  -  2+5
        2 384 1 0  -  -  4+3
        3 384 1 0  0  -  6+1 0:1,2,3,4,5,6
        4 384 - 01 1  -  7+2 0:1,2,3,4,5,6 1:1,2,3,4,5,7
        5 385 - -  01 01 0+0
        """,
        length=512,
    )


def test_a_hit_of_whole_chunks_skips_them():
    assert_hits(
        [(384, 2, 0, *SAME), (384, 2, 0, *SAME[:4])],
        """
        1 384 1 0  -  -  2+5
        2 384 1 0  -  -  4+3
        3 384 1 0  0  -  6+1
        4 384 - 01 1  -  8+2 0:1,2,3,4,5,6 1:1,2,3,4,7,8
        5 385 - -  01 01 0+0
        """,
        length=512,
    )


def test_a_hit_inside_of_a_chunk_computes_the_chunk_again():
    """Theirs has 8+3 after step 4."""
    assert_hits(
        [(384, 2, 0, *SAME), (384, 2, 0, *SAME[:3])],
        """
        1 384 1 0  -  -  2+5
        2 384 1 0  -  -  4+3
        3 384 1 0  0  -  6+1
        4 384 - 01 -  -  7+4 0:1,2,3,4,5,6 1:1,2,3,7
        5 384 - 01 1  -  9+2 0:1,2,3,4,5,6 1:1,2,3,7,8,9
        6 385 - -  01 01 0+0
        """,
        length=512,
    )


def test_a_hit_inside_of_a_padded_first_chunk_computes_it_again():
    """Theirs has 64, 3+4 and 1:1,2,3 after step 2."""
    assert_hits(
        [(64, 2, 0, *SAME), (320, 2, 0, *SAME[:1])],
        """
        1  64 1 0  0  -  1+1 0:1
        2 320 - 01 -  -  2+5 0:1 1:1,2
        3 320 - 01 1  -  5+2 0:1 1:1,2,3,4,5
        4 321 - -  01 01 0+0
        """,
        chunk=192,
        length=576,
    )


SHARES_ONE = [(64, 3, 0, *SAME), (65, 2, 0, *SAME)]


def test_a_shared_block_needs_no_place():
    assert_hits(
        SHARES_ONE,
        """
        1 64 1 0  0  -  1+1 0:1
        2 65 1 0  0  -  2+0 0:1,2
        3 65 - 01 1  -  3+0 0:1,2 1:1,3
        4 66 - -  01 01 0+0
        """,
        rules=UPSTREAM,
        chunk=64,
        length=128,
        blocks=3,
    )


def test_a_shared_block_is_not_enough_in_a_full_pool():
    assert_hits(
        SHARES_ONE,
        """
        1 64 1 0 0 - 1+1
        2 65 1 0 0 - 2+0
        3 66 1 - 0 0 0+0
        4 65 - 1 1 - 2+0
        5 66 - - 1 1 0+0
        """,
        rules=UPSTREAM,
        chunk=64,
        length=128,
        blocks=2,
    )
