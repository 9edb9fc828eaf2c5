"""What is chosen goes into `--additional-config`, and a server reads the same out of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyre_bench.choose import server_settings
from spyre_bench.policy.continuous import Rules
from spyre_bench.policy.static import POLICIES, Policy
from spyre_bench.shape_set import ShapeSet
from spyre_bench.shapes import Bucket

BUCKETS = (Bucket(4, 64, 32), Bucket(2, 256, 64))


def test_under_the_usual_policy_only_the_buckets_are_said():
    said = server_settings.of_buckets(BUCKETS)
    assert said == {"spyre": {"buckets": [[4, 64, 32], [2, 256, 64]]}}


def test_of_other_rules_those_are_said_that_are_not_usual():
    shapes = ShapeSet.parse("64,512", "4,512", 40)
    said = server_settings.of_shapes(shapes, Rules(decode_between=3))["spyre"]
    assert said == {
        "batching": "continuous",
        "prefill_shapes": "64,512",
        "decode_shapes": "4,512",
        "blocks": 40,
        "rules": {"decode_between": 3},
    }
    assert "rules" not in server_settings.of_shapes(shapes, Rules())["spyre"]


@pytest.mark.vllm
@given(
    name=st.sampled_from(list(POLICIES)),
    max_wait_s=st.floats(0, 600),
    gather_s=st.floats(0.001, 60),
    max_age_s=st.floats(0, 86400),
)
def test_a_server_forms_batches_by_the_policy_that_was_chosen(**chosen):
    pytest.importorskip("torch")
    from spyre_bench.plugin.config import SpyreConfig

    text = json.dumps(server_settings.of_buckets(BUCKETS, Policy(**chosen)))
    read = SpyreConfig.read(json.loads(text)["spyre"], {})
    assert tuple(read.buckets) == tuple(sorted(BUCKETS))
    assert read.formation == Policy(**chosen)


@pytest.mark.vllm
def test_a_server_steps_by_the_rules_that_were_chosen():
    pytest.importorskip("torch")
    from spyre_bench.plugin.config import SpyreConfig

    shapes, rules = ShapeSet.parse("64,512", "4,512 8,512", 40), Rules(decode_between=3)
    text = json.dumps(server_settings.of_shapes(shapes, rules))
    read = SpyreConfig.read(json.loads(text)["spyre"], {})
    assert read.shapes == shapes
    assert read.rules == rules
