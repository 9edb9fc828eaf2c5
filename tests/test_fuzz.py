"""A part of `make fuzz`: what reaches a user is a sentence that we wrote, whatever was brought."""

from tests import fuzz


def test_no_exception_reaches_a_user():
    assert list(fuzz.run(inputs=120, seed=20)) == []


def test_every_kind_of_input_is_among_them_and_each_follows_from_its_number(tmp_path):
    assert [one.number for one in fuzz.run(1, 20, only=7)] == []
    first, again = (fuzz.damaged_text(fuzz.random.Random("20/7"), "a,b\n1,2\n") for _ in range(2))
    assert first == again


def test_faults_and_sentences_of_libraries_are_told_from_sentences_of_ours():
    def raised(function, *words) -> str:
        try:
            function(*words)
        except Exception as error:
            return fuzz.reached(error)

    assert raised(lambda: 1 / 0) == "ZeroDivisionError in test_fuzz.py:<lambda>"
    assert raised(int, "x").startswith("a sentence of test_fuzz.py")
    assert raised(open, "/nowhere") == ""
    assert raised(fuzz.cli.plan.memory_bytes, float("inf")) == ""
