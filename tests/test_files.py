"""Files that people bring, and files that we leave."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import spyre_bench
from spyre_bench.errors import sentence
from spyre_bench.files import (
    code,
    content,
    contents,
    in_use,
    parse_yaml,
    read_json,
    read_text,
    replace_text,
    replacing,
    require_place,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[" * 200_000, "JSON nested too deeply"),
        (b"9" * 9_999, "not JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_refused_with_its_files_name(tmp_path, text, words):
    (tmp_path / "some.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"some\.json: {words}"):
        read_json(tmp_path / "some.json")


@pytest.mark.parametrize("text", ["a: [", "[" * 5_000, "? [a]\n: b", "!!set [a]"])
def test_what_is_no_yaml_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"g\.yaml: \w+") as refused:
        parse_yaml(text, "g.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("date", ["2024-12-31", "2024-13-45"])
def test_a_date_in_yaml_is_text_whoever_has_changed_the_library(date):
    assert parse_yaml(f"a: {date}", "g.yaml") == {"a": date}


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "some").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "some") == "a"


def test_a_file_is_replaced_in_one_step_and_nothing_else_is_left(tmp_path, monkeypatch):
    path = tmp_path / "new" / "some.json"
    replace_text(path, "one")
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_text(path, "two")
    assert path.read_text() == "one"
    assert [path.name for path in path.parent.iterdir()] == ["some.json"]


def test_the_codes_digest_is_another_one_after_any_edit_of_any_room(tmp_path, monkeypatch):
    copy = tmp_path / "spyre_bench"
    shutil.copytree(Path(spyre_bench.__file__).parent, copy)
    before = code()
    monkeypatch.setattr(spyre_bench, "__file__", str(copy / "__init__.py"))
    assert code() == before  # wherever it is installed
    (copy / "shapes.pyc").touch()
    assert code() == before
    for room in ("shapes.py", "runs/report.py", "policy/static.py", "data/cost.csv"):
        with (copy / room).open("a") as file:
            file.write("\n")
        before, edited = code(), before
        assert before != edited, room


def test_a_file_is_known_wherever_in_a_text_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("a.json", "@a.json", "4:a.json 8:b.json", "4:b.json 8:a.json", "4,64,32 @a.json"):
        digests = []
        for written in ("1", "2"):
            Path("a.json").write_text(written)
            digests.append(contents(text))
        assert digests[0] != digests[1], text
    assert not any(contents(4.0) + contents("none such: 4"))


def test_what_another_process_writes_is_refused_with_its_number(tmp_path):
    code = (
        "import sys, pathlib; from spyre_bench.files import in_use\n"
        "with in_use(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    )
    words = [sys.executable, "-c", code, tmp_path / "out.csv"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(ValueError, match=rf"out\.csv is in use by process {other.pid} on "),
            in_use(tmp_path / "out.csv"),
        ):
            pass
        other.kill()
    with in_use(tmp_path / "out.csv"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_keeps_its_lock_inside(tmp_path):
    with in_use(tmp_path), pytest.raises(ValueError, match="is in use by"), in_use(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_other_content_where_a_file_of_it_has_changed(tmp_path):
    (tmp_path / "weights").write_text("1")
    before = content(tmp_path)
    assert content(tmp_path) == before
    (tmp_path / "weights").write_text("22")
    assert content(tmp_path) not in (before, None)


def test_a_name_from_home_is_known_as_a_model_is_found_by_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert content("~/model") == content(tmp_path / "model")


@pytest.mark.parametrize("name", [3, None, "", "nowhere", "a\x00b", "x" * 10_000, "/dev/null"])
def test_what_names_no_file_has_no_content(name):
    assert content(name) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("first,\n  second"), "first, second"),
        (ZeroDivisionError("float division"), "ZeroDivisionError: float division"),
        (ValueError(), "ValueError"),
        (
            FileNotFoundError(2, "No such file or directory", "x.csv"),
            "x.csv: No such file or directory",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("the hub is not reachable"), "the hub is not reachable"),
        (RecursionError(), "RecursionError"),
    ],
)
def test_an_error_is_one_line_and_names_its_kind_where_it_was_not_written_for_people(error, words):
    assert sentence(error) == words


def test_what_cannot_be_written_is_said_before_the_work_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "file").touch()
    require_place(tmp_path / "new" / "out.csv")
    assert not (tmp_path / "new").exists()
    for path, words in (
        (tmp_path, "is a folder: name a file in it"),
        (tmp_path / "file" / "out.csv", r"cannot be written \(Not a directory\): name a file"),
        (Path("/dev/null"), "is a device or a pipe, and not a file"),
    ):
        with pytest.raises(ValueError, match=words):
            require_place(path)
    with pytest.raises(ValueError, match="is a device"):
        replace_text(Path("/dev/null"), "")


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError) as refused, replacing(tmp_path / "out.csv"):
        pass  # nothing was written, so that there is nothing to rename
    assert sentence(refused.value) == f"{tmp_path / 'out.csv'}: No such file or directory"
