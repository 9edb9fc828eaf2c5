import pytest

from spyre_bench.cost import COLUMNS, CostRow, read_cost_table, write_cost_table


def row(**changed) -> CostRow:
    values = dict.fromkeys(COLUMNS, 1) | {
        name: "x" for name in COLUMNS if CostRow.__annotations__[name] == "str"
    }
    return CostRow(**values | {"prompt_length": 64, "new_tokens": 2} | changed)


def test_a_table_reads_back_as_it_was_written(tmp_path):
    rows = [row(prefill_s=0.25), row(batch_size=2, measured_at="2026-01-01T00:00:00+00:00")]
    write_cost_table(tmp_path / "cost.csv", rows)
    assert read_cost_table(tmp_path / "cost.csv") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["cost.csv"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a CSV file"),
        ("a,b\n1,2\n", "columns .*batch_size.* are missing"),
        (",".join(COLUMNS) + "\n" + ",".join("y" for _ in COLUMNS), "does not read"),
    ],
)
def test_a_broken_table_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "cost.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"cost.csv.*{words}"):
        read_cost_table(path)
