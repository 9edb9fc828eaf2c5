import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from spyre_bench.cli.main import app
from spyre_bench.engine.compile import COMPILE_BACKENDS, COMPILE_SCOPES
from spyre_bench.plugin.config import WARMUP, SpyreConfig
from spyre_bench.plugin.rank_failures import LAST_WORDS
from spyre_bench.policy.continuous import Rules
from spyre_bench.shapes import BucketSet
from tests.test_shapes import bucket_sets

LISTS = {
    "VLLM_SPYRE_WARMUP_PROMPT_LENS": "64,256",
    "VLLM_SPYRE_WARMUP_NEW_TOKENS": "32,64",
    "VLLM_SPYRE_WARMUP_BATCH_SIZES": "4,2",
}
TWO = BucketSet.parse("4,64,32 2,256,64")


def test_buckets_come_from_additional_config():
    config = SpyreConfig.read({"buckets": [[4, 64, 32], [2, 256, 64]]}, {})
    assert config.buckets == TWO


def test_where_that_is_silent_they_come_from_upstreams_environment_names():
    environment = LISTS | {
        "VLLM_SPYRE_DYNAMO_BACKEND": "eager",
        "VLLM_SPYRE_REQUIRE_PRECOMPILED_DECODERS": "1",
    }
    config = SpyreConfig.read({}, environment)
    assert config.buckets == TWO
    assert config.compile_backend == "eager"
    assert config.require_precompiled is True


def test_additional_config_wins_over_the_environment():
    environment = LISTS | {
        "VLLM_SPYRE_DYNAMO_BACKEND": "eager",
        "VLLM_SPYRE_REQUIRE_PRECOMPILED_DECODERS": "1",
    }
    settings = {
        "buckets": ["1,64,2"],
        "compile_backend": "inductor",
        "require_precompiled": False,
    }
    config = SpyreConfig.read(settings, environment)
    assert config == SpyreConfig(buckets=BucketSet.parse("1,64,2"))


def test_buckets_come_from_a_file_by_setting_or_by_environment(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text('{"buckets": [[4, 64, 32], [2, 256, 64]], "tuned": {"log": "passes.jsonl"}}')
    assert SpyreConfig.read({"buckets": f"@{path}"}, {}).buckets == TWO
    config = SpyreConfig.read({}, {"SPYRE_BENCH_SHAPES": str(path)})
    assert config.buckets == TWO
    path.unlink()
    again = SpyreConfig.read(config.as_settings(), {})
    assert again == config, "other processes of the engine get the buckets, not the file's name"


def test_shapes_come_from_a_file_by_setting_or_by_environment(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text('{"prefill_shapes": ["64,512"], "decode_shapes": [[4, 512]], "blocks": 33}')
    by_setting = dict.fromkeys(("prefill_shapes", "decode_shapes"), f"@{path}")
    config = SpyreConfig.read({"batching": "continuous"} | by_setting, {})
    assert (config.prefill_shapes, config.decode_shapes) == ("64,512", "4,512")
    environment = {"SPYRE_BENCH_SHAPES": str(path)}
    assert SpyreConfig.read({"batching": "continuous"}, environment) == config
    own = {"batching": "continuous", "decode_shapes": "2,512"}
    assert SpyreConfig.read(own, environment).decode_shapes == "2,512"
    path.write_text('{"buckets": [[4, 64, 32]]}')
    with pytest.raises(ValueError, match="holds no list of prefill_shapes"):
        SpyreConfig.read({"batching": "continuous"}, environment)


def test_one_source_of_buckets_in_the_environment_is_enough(tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text("[[1, 64, 2]]")
    both = LISTS | {"SPYRE_BENCH_SHAPES": str(path)}
    with pytest.raises(ValueError, match=r"SPYRE_BENCH_SHAPES=.* and VLLM_SPYRE_WARMUP_.* both"):
        SpyreConfig.read({}, both)
    assert SpyreConfig.read({"buckets": [[4, 64, 32]]}, both).buckets == BucketSet.parse("4,64,32")
    with pytest.raises(ValueError, match=r"buckets @/nowhere\.json: No such file"):
        SpyreConfig.read({}, {"SPYRE_BENCH_SHAPES": "/nowhere.json"})


def test_with_nothing_set_upstreams_default_bucket_is_compiled():
    assert SpyreConfig.read({}, {}).buckets == BucketSet.parse("1,64,20")


CONTINUOUS = {"batching": "continuous"}


def test_continuous_batching_makes_its_shapes_of_vllms_own_options_where_none_are_named():
    config = SpyreConfig.read(CONTINUOUS, {}).with_shapes(1000, rows=6, chunk=200, blocks=50)
    assert config.prefill_shapes == "64,256 64,960 256,256 256,960"
    assert config.decode_shapes == "2,256 2,960 3,256 3,960 6,256 6,960"
    assert config.blocks == 50
    assert config.rules.chunk_tokens == 200 // 64 * 64 + 64
    assert SpyreConfig.read(config.as_settings(), {}) == config


def test_shapes_that_are_named_win():
    named = {"prefill_shapes": [[128, 512]], "decode_shapes": "4,512", "blocks": 20}
    config = SpyreConfig.read(CONTINUOUS | named, {}).with_shapes(2048, 16, 64, 99)
    assert str(config.shapes) == "prefill 128,512 decode 4,512 blocks 20"


@pytest.mark.parametrize(("setting", "option"), [(4, None), (None, 4), (4, 8)])
def test_fewer_rows_than_the_named_shapes_have_are_refused(setting, option):
    settings = CONTINUOUS | {"decode_shapes": "8,512", "max_num_seqs": setting}
    with pytest.raises(ValueError, match="max_num_seqs 4 is below the 8 rows of decode_shapes"):
        SpyreConfig.read(settings, {}).with_shapes(512, option, None, None)


def test_an_existing_deployment_of_continuous_batching_is_obeyed():
    environment = {
        "SENDNN_INFERENCE_USE_CHUNKED_PREFILL": "1",
        "SENDNN_INFERENCE_CP_INTERLEAVE_STEPS": "0",
        "SENDNN_INFERENCE_LONG_OUT_PRIO": "1",
        "SENDNN_INFERENCE_PAUSING_ENABLED": "0",
        "VLLM_DT_CHUNK_LEN": "128",
        "VLLM_DT_MAX_BATCH_SIZE": "4",
        "VLLM_DT_MAX_BATCH_TKV_LIMIT": "4096",
    }
    config = SpyreConfig.read({}, environment).with_shapes(512, None, None, None)
    assert config.batching == "continuous"
    assert config.shapes is not None
    assert (config.shapes.max_rows, config.shapes.max_chunk) == (4, 128)
    assert config.rules == Rules(
        chunk_tokens=128,
        decode_between=0,
        longest_first=True,
        over_limit="hold",
        max_batch_context_tokens=4096,
    )
    with pytest.raises(ValueError, match="VLLM_SPYRE_USE_CB=1 asks for continuous batching and"):
        SpyreConfig.read({"buckets": [[4, 64, 32]]}, {"VLLM_SPYRE_USE_CB": "1"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batching": "dynamic"}, "batching 'dynamic' is wrong, it is one of static, continuous"),
        (CONTINUOUS | {"buckets": [[4, 64, 32]]}, "is a setting of static batching"),
        ({"buckets": [[4, 64, 32]], "decode_shapes": "4,512"}, "is a setting of continuous"),
        (CONTINUOUS | {"rules": {"admissions": "reserve"}}, "did you mean 'admission'"),
        (CONTINUOUS | {"rules": {"admission": "all"}}, "admission 'all' is not known: use one of"),
        (CONTINUOUS | {"decode_shapes": "4,500"}, "500 is not a positive multiple of 64: use 512"),
        (CONTINUOUS | {"blocks": 0}, "blocks 0 is wrong, it is a whole number above 0"),
    ],
)
def test_a_wrong_setting_of_continuous_batching_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SpyreConfig.read(settings, {}).with_shapes(512, None, None, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"buckets": [[4, 65, 32]]}, "prompt_length 65 is not a positive multiple of 64.*use 128"),
        ({"buckets": [[4, 64, 1]]}, "new_tokens 1 is below 2.*use 2 or more"),
        ({"buckets": []}, "at least one, for example 4,64,32"),
        ({"buckets": 4}, "buckets 4 is wrong, it is a list of"),
        ({"bucket": []}, "unknown key 'bucket': did you mean 'buckets'"),
        ({"compile_backed": "eager"}, "did you mean 'compile_backend'"),
        ({"xyz": 1}, "unknown key 'xyz': leave it out. Known keys: batching, buckets,"),
        ({"compile_backend": "iductor"}, "one of eager, inductor, sendnn; did you mean 'inductor'"),
        ({"compile_scope": "block"}, "compile_scope 'block' is wrong, it is one of layer, model"),
        ({"require_precompiled": "yes"}, "require_precompiled 'yes' is wrong, it is true or false"),
        ({"memory_bytes": 0}, "memory_bytes 0 is wrong, it is a whole number of bytes"),
        ({"memory_bytes": "8G"}, "memory_bytes '8G' is wrong"),
        ({"gather_s": -1}, "gather_s -1 is wrong, it is a number of seconds from 0 to 60"),
        ({"gather_s": True}, "gather_s True is wrong"),
        ({"pass_log": 7}, "pass_log 7 is wrong, it is a path"),
        ({"artefact_directory": "~nobody-of-that-name/a"}, "has a '~' but this user no home"),
        ({"artefact_trust": "groups"}, "one of user, group, any; did you mean 'group'"),
        ("buckets", "'buckets' is not a mapping"),
    ],
)
def test_a_wrong_setting_is_refused_with_value_rule_and_fix(settings, words):
    with pytest.raises(ValueError, match=words):
        SpyreConfig.read(settings, {})


@pytest.mark.parametrize(
    ("additional", "words"),
    [
        ({"buckets": [[4, 64, 32]]}, r"has 'buckets' beside \"spyre\".*\{\"spyre\": \{\"buckets\""),
        ({"spyre": {}, "memory_bytes": 1}, "'memory_bytes' beside"),
        ({"Spyre": {}}, "a key 'Spyre': did you mean \"spyre\""),
        ({"spyre_bench": {}}, "a key 'spyre_bench': did you mean"),
        ([4, 64, 32], "is not a mapping"),
    ],
)
def test_settings_that_do_not_stand_under_spyre_are_refused(additional, words):
    with pytest.raises(ValueError, match=words):
        SpyreConfig.of(SimpleNamespace(additional_config=additional))


def test_settings_of_another_plugin_and_what_the_engine_notes_stand_beside_ours():
    noted = {WARMUP: [], LAST_WORDS: "/tmp/words", "other_plugin": {"a": 1}}
    config = SpyreConfig.of(SimpleNamespace(additional_config=noted | {"spyre": {"gather_s": 3}}))
    assert config.gather_s == 3


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            LISTS | {"VLLM_SPYRE_WARMUP_NEW_TOKENS": "32"},
            "unequal length.*BATCH_SIZES has 2.*PROMPT_LENS has 2.*NEW_TOKENS has 1",
        ),
        (LISTS | {"VLLM_SPYRE_WARMUP_PROMPT_LENS": "64,100"}, "prompt_length 100.*use 128"),
        (LISTS | {"VLLM_SPYRE_WARMUP_NEW_TOKENS": "32,1"}, "new_tokens 1 is below 2"),
        ({"VLLM_SPYRE_WARMUP_PROMPT_LENS": "64;128"}, "PROMPT_LENS='64;128' is not a list"),
        ({"VLLM_SPYRE_DYNAMO_BACKEND": "sendn"}, "'sendn' is wrong.*did you mean 'sendnn'"),
        ({"VLLM_SPYRE_REQUIRE_PRECOMPILED_DECODERS": "on"}, "'on' is not a flag: write 0 or 1"),
    ],
)
def test_a_wrong_environment_is_refused_likewise(environment, words):
    with pytest.raises(ValueError, match=words):
        SpyreConfig.read({}, environment)


def test_a_bucket_beyond_the_models_context_is_refused():
    config = SpyreConfig(buckets=TWO)
    config.require_context(320)
    with pytest.raises(ValueError, match=r"bucket 2,256,64 needs a context of 320 .* allows 319"):
        config.require_context(319)


@given(
    st.builds(
        SpyreConfig,
        buckets=bucket_sets,
        compile_backend=st.sampled_from(COMPILE_BACKENDS),
        compile_scope=st.sampled_from(COMPILE_SCOPES),
        artefact_directory=st.sampled_from([None, Path("/artefacts")]),
        require_precompiled=st.booleans(),
        memory_bytes=st.none() | st.integers(1, 2**40),
        pass_log=st.sampled_from([None, Path("/logs/passes.jsonl")]),
        gather_s=st.floats(0, 60),
    )
)
def test_a_configuration_survives_the_way_to_another_process(config):
    assert SpyreConfig.read(config.as_settings(), LISTS) == config


def test_what_spyre_bench_shapes_prints_is_what_the_backend_takes():
    """Its shapes, blocks, and the rules that it was replayed under."""
    words = (
        "shapes --workload azure_conv --requests 60 --length-scale 0.25 --arrivals poisson:0.5 "
        "-k 4 --rows 2 --chunk-tokens 128 --layout rectangular --decode-between 2 --json"
    )
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    config = SpyreConfig.read(result["additional_config"]["spyre"], {})
    assert [str(it) for it in config.shapes.prefill] == result["prefill_shapes"]
    assert [str(it) for it in config.shapes.decode] == result["decode_shapes"]
    assert config.rules == Rules(chunk_tokens=128, layout="rectangular", decode_between=2)
