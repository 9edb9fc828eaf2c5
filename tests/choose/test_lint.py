import numpy as np
import pytest

from spyre_bench.choose.lint import lint, lint_shapes
from spyre_bench.cost.bucket_cost import BucketCost, price
from spyre_bench.cost.closed_form import FittedCost
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket, BucketSet
from spyre_bench.workload.workload import Workload

# prefill 0.02 + 1e-4·B·P, decode 0.02 + 5e-4·B seconds
TOY = FittedCost((0.02, 1e-4), (0.02, 5e-4, 0.0))


def workload(*requests: tuple[int, int]) -> Workload:
    prompt_tokens, output_tokens = (np.array(column) for column in zip(*requests, strict=True))
    return Workload("by hand", np.zeros(len(requests)), prompt_tokens, output_tokens, output_tokens)


def toy(text: str):
    return price(BucketSet.parse(text), TOY)


def test_a_set_without_fault_has_no_findings():
    found = lint(workload((60, 10), (200, 30)), toy("4,64,32 2,256,64"), TOY)
    assert found.sentences() == []


def test_a_bucket_within_a_larger_one_is_needless_only_if_it_is_no_cheaper():
    requests = workload((60, 10))
    assert lint(requests, toy("4,64,32 4,128,32"), TOY).dominated == ()
    flat = (BucketCost(Bucket(4, 64, 32), 1.0, 0.1), BucketCost(Bucket(4, 128, 32), 1.0, 0.1))
    found = lint(requests, flat, TOY)
    assert found.dominated == ((Bucket(4, 64, 32), Bucket(4, 128, 32)),)
    assert "bucket 4,64,32 is needless: 4,128,32 takes all of its batches" in found.sentences()[0]


def test_a_bucket_that_fits_no_request_is_named():
    found = lint(workload((200, 10)), toy("4,64,32 2,256,64"), TOY)
    assert found.sentences() == ["bucket 4,64,32 fits no request of the workload: leave it out"]


def test_uncovered_requests_are_counted_with_the_cheapest_bucket_that_would_take_them():
    found = lint(workload((60, 10), (300, 40), (65, 200)), toy("1,64,32 4,64,16"), TOY)
    assert (found.uncovered, found.requests) == (2, 3)
    # both dimensions are covered at once; at 4 rows a request costs less than at 1
    assert found.remedy.bucket == Bucket(4, 320, 200)
    assert found.sentences() == [
        "2 of 3 requests fit no bucket and are rejected: bucket 4,320,200 would take them and is "
        "the cheapest that does"
    ]


def test_the_batch_size_of_the_remedy_is_a_question_of_cost():
    # seconds in proportion to the rows: more of them save nothing, and one pads least
    steep = FittedCost((0.0, 1.0), (0.0, 0.0, 1.0))
    flat_rows = (BucketCost(Bucket(4, 64, 32), 1.0, 1.0),)
    assert lint(workload((300, 40)), flat_rows, steep).remedy.bucket.batch_size == 1


def test_the_remedy_is_no_smaller_than_the_cost_table_begins():
    class FromLonger:
        smallest = (1, 128, 32)

        def of(self, bucket):
            assert bucket.prompt_length >= 128
            assert bucket.new_tokens >= 32
            return TOY.of(bucket)

    found = lint(workload((10, 10)), toy("1,64,4"), FromLonger())
    assert found.remedy.bucket == Bucket(1, 128, 32)


def test_where_no_bucket_is_priced_there_is_no_remedy():
    class Nothing:
        smallest = (1, 64, 2)

        def of(self, bucket):
            raise ValueError("outside")

    found = lint(workload((300, 40)), toy("4,64,32"), Nothing())
    assert found.remedy is None
    assert "no bucket of the cost model's range takes them all" in found.sentences()[-1]


@pytest.mark.parametrize("tokens", [1, 64, 65])
def test_its_remedy_really_covers(tokens):
    requests = workload((tokens, 100))
    remedy = lint(requests, toy("1,64,32"), TOY).remedy
    assert lint(requests, [remedy], TOY).uncovered == 0


def test_the_context_that_would_take_refused_requests_is_named():
    shapes = ShapeSet.parse("64,256", "2,320")
    assert lint_shapes(workload((200, 56), (1, 255)), shapes) == []
    requests = workload((200, 57), (10, 10), (300, 90))
    assert lint_shapes(requests, shapes) == [
        "2 of 3 requests need a longer context than 256 and are refused: a prefill and a decode "
        "shape with a context of 448 would take them"
    ]
    larger = ShapeSet.parse("64,448", "2,448")
    assert lint_shapes(requests, larger) == []
