"""The way of the counts from the scheduler's process to Prometheus."""

import json

import pytest
from prometheus_client import REGISTRY

from spyre_bench.pass_log import Warmup
from spyre_bench.plugin import prometheus
from spyre_bench.plugin.engine_counts import Counts, attached
from spyre_bench.plugin.platform import SpyrePlatform
from spyre_bench.policy.ledger import WasteLedger
from spyre_bench.shapes import Bucket
from tests.plugin.test_static_scheduler import vllm_config

__all__ = ["vllm_config"]  # the fixture

BUCKET = Bucket(4, 64, 32)
LEDGER = WasteLedger(useful=50, batch_pad=30, decode_tail=20)


@pytest.fixture
def counts():
    return Counts([Warmup(BUCKET, 1.0, 0.5, 0.25, 0.05, False, 2)])


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.setattr(prometheus, "current_platform", SpyrePlatform())


def statistics(counts: Counts, queue_age_s: float = 0.0):
    """As they arrive in the other process: through JSON's types and vLLM's own encoder."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    stats = SchedulerStats()
    counts.attach(stats, queue_age_s)
    json.dumps(stats.waiting_lora_adapters)
    sent = MsgpackEncoder().encode(EngineCoreOutputs(scheduler_stats=stats))
    return MsgpackDecoder(EngineCoreOutputs).decode(sent).scheduler_stats


def sample(name: str, **labels) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_totals_survive_the_way_to_the_other_process(counts):
    counts.add_batch(BUCKET, 3, LEDGER)
    counts.add_rejected("unsupported")
    totals = attached(statistics(counts, queue_age_s=1.5))
    assert totals["batches", "4,64,32"] == 1
    assert totals["rows", "4,64,32"] == 3
    assert totals["tokens", "4,64,32", "batch_pad"] == 30
    assert totals["warmup_us", "4,64,32"] == 1_800_000
    assert totals["warmup_graphs", "4,64,32"] == 2
    assert totals["rejected", "unsupported"] == 1
    assert totals["queue_age_us",] == 1_500_000


def test_counters_grow_by_what_came_since_and_a_lost_message_loses_nothing(
    counts, ours, vllm_config
):
    logger = prometheus.SpyreStatLogger(vllm_config, engine_index=7)
    where = {
        "model_name": vllm_config.model_config.served_model_name,
        "engine": "7",
        "bucket": "4,64,32",
    }
    counts.add_batch(BUCKET, 3, LEDGER)
    logger.record(statistics(counts), None)
    counts.add_batch(BUCKET, 2, LEDGER)
    statistics(counts)  # never arrives
    counts.add_batch(BUCKET, 1, LEDGER)
    logger.record(statistics(counts, 2.0), None)
    logger.record(statistics(counts, 2.0), None)
    logger.record(None, None)
    assert sample("spyre:batches_total", **where) == 3
    assert sample("spyre:batch_rows_total", **where) == 6
    assert sample("spyre:tokens_total", **where, kind="decode_tail") == 60
    assert sample("spyre:fill_ratio", **where) == pytest.approx(0.5)
    assert sample("spyre:warmup_seconds", **where) == pytest.approx(1.8)
    del where["bucket"]
    assert sample("spyre:queue_age_seconds", **where) == 2.0


def test_of_several_api_servers_one_counts_what_the_engine_did(
    counts, ours, vllm_config, monkeypatch
):
    """prometheus_client adds up their counters; the totals of a step reach one of them."""
    servers = []
    for rank in (0, 1):
        monkeypatch.setattr(vllm_config.parallel_config, "_api_process_rank", rank)
        servers.append(prometheus.SpyreStatLogger(vllm_config, engine_index=9))
    where = {"model_name": vllm_config.model_config.served_model_name, "engine": "9"}
    refused = sample("spyre:rejected_requests_total", reason="unsupported") or 0
    for server in (1, 0, 1, 1, 0):
        counts.add_batch(BUCKET, 3, LEDGER)
        counts.add_rejected("unsupported")
        servers[server].record(statistics(counts), None)
    assert sample("spyre:batches_total", **where, bucket="4,64,32") == 5
    assert sample("spyre:rejected_requests_total", reason="unsupported") == refused + 5


def test_on_another_device_nothing_is_counted_watched_or_adopted(counts, monkeypatch, vllm_config):
    from vllm.entrypoints.serve.utils import api_utils
    from vllm.platforms.cpu import CpuPlatform

    monkeypatch.setattr(prometheus, "current_platform", CpuPlatform())
    monkeypatch.setattr(SpyrePlatform, "_config", None)
    before = api_utils.get_max_tokens
    logger = prometheus.SpyreStatLogger(vllm_config, engine_index=8)
    counts.add_batch(BUCKET, 3, LEDGER)
    logger.record(statistics(counts), None)
    name = vllm_config.model_config.served_model_name
    assert sample("spyre:batches_total", model_name=name, engine="8", bucket="4,64,32") is None
    assert api_utils.get_max_tokens is before
    assert SpyrePlatform._config is None


def test_a_second_api_server_learns_the_buckets_from_the_engine_it_talks_to(
    ours, monkeypatch, vllm_config
):
    monkeypatch.setattr(SpyrePlatform, "_config", None)
    prometheus.SpyreStatLogger(vllm_config)
    assert SpyrePlatform.get_max_output_tokens(200) == 64
    assert not SpyrePlatform.takes_prompt(257)
