"""Warmup compiles one prefill and one decode graph per bucket; serving compiles nothing."""

import time
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

BUCKETS = "1,64,4 2,128,3"


@pytest.fixture
def fresh(tiny_llama):
    """fresh(**setting): an engine that is not warmed, of this test alone."""
    from spyre_bench.engine.causal_lm import SpyreCausalLM
    from spyre_bench.engine.compiled_model import EngineConfig
    from spyre_bench.shapes import BucketSet

    def make(**setting):
        setting = {"compile_backend": "eager", "buckets": BucketSet.parse(BUCKETS)} | setting
        return SpyreCausalLM(EngineConfig(model_directory=tiny_llama, **setting))

    return make


def serve(model) -> None:
    """Every fill of every bucket, to the last token."""
    for bucket in model.buckets:
        for fill in range(1, bucket.batch_size + 1):
            model.prefill(bucket, [[5] * (row + 1) for row in range(fill)])
            for _ in range(bucket.new_tokens - 1):
                model.decode([6] * fill)


@pytest.mark.parametrize("compile_scope", ["layer", "model"])
def test_warmup_raises_the_graph_count_by_two_a_bucket_and_serving_by_none(fresh, compile_scope):
    from spyre_bench.engine.compile import unique_graphs
    from spyre_bench.engine.warmup import warm_up

    model = fresh(compile_scope=compile_scope)
    before = unique_graphs()
    rows = warm_up(model, progress=False)
    assert [row.graphs for row in rows] == [2, 2]
    assert unique_graphs() - before == 4
    serve(model)
    assert unique_graphs() - before == 4


@pytest.mark.parametrize(("compile_scope", "calls"), [("layer", 2), ("model", 1)])
def test_the_served_pass_is_the_compiled_one(fresh, monkeypatch, compile_scope, calls):
    from spyre_bench.engine import compiled_model as module
    from spyre_bench.engine.warmup import warm_up

    ran = []

    def recording(graph, inputs):
        return lambda *args: (ran.append(graph), graph(*args))[1]

    def compile_pass(function, name, backend):
        return original(function, name, recording)

    original = module.compile_pass
    monkeypatch.setattr(module, "compile_pass", compile_pass)
    model = fresh(compile_scope=compile_scope)
    warm_up(model, progress=False)
    compiled = set(ran)
    assert len(compiled) == 4  # a prefill and a decode for each of two buckets
    for bucket in model.buckets:
        ran.clear()
        model.prefill(bucket, [[5]])
        assert len(ran) == calls  # the tiny model has two layers
        model.decode([6])
        assert len(ran) == 2 * calls
        assert set(ran) < compiled


def test_the_largest_bucket_is_warmed_first(fresh):
    from spyre_bench.engine.warmup import warm_up

    rows = warm_up(fresh(), progress=False)
    assert [str(row.bucket) for row in rows] == ["2,128,3", "1,64,4"]
    assert all(row.compile_s >= 0 and row.prefill_s > 0 and row.decode_s > 0 for row in rows)


def slow_when_first_timed(run, calls: list) -> object:
    """The second call: the first one compiles."""

    def slowed(*args):
        calls.append(args)
        if len(calls) == 2:
            time.sleep(0.5)
        return run(*args)

    return slowed


def test_a_timed_pass_that_lost_its_core_does_not_count(fresh, monkeypatch):
    from spyre_bench.engine.warmup import warm_up
    from spyre_bench.shapes import BucketSet

    model = fresh(buckets=BucketSet.parse("1,64,4"))
    calls: dict[str, list] = {"prefill": [], "decode": []}
    for name, made in calls.items():
        monkeypatch.setattr(model, name, slow_when_first_timed(getattr(model, name), made))
    (row,) = warm_up(model, progress=False)
    assert {len(made) for made in calls.values()} == {3}
    assert max(row.prefill_s, row.decode_s) < 0.5


def test_the_bar_names_the_bucket_and_the_time_left(fresh, capfd):
    from spyre_bench.engine.warmup import warm_up

    warm_up(fresh(), progress=True)
    text = capfd.readouterr().err
    assert "bucket 2,128,3" in text
    assert "bucket 1,64,4" in text
    assert "<" in text  # elapsed<left


def test_a_pass_that_would_compile_while_serving_raises(fresh):
    from spyre_bench.engine.warmup import warm_up

    model = fresh()
    warm_up(model, progress=False)
    bucket = model.buckets.buckets[0]
    model._caches[bucket] = [(k[..., :4], v[..., :4]) for k, v in model._caches[bucket]]
    with pytest.raises(RuntimeError, match="recompile"):
        model.prefill(bucket, [[5]])


def test_others_may_compile_between_our_passes(fresh):
    import torch

    from spyre_bench.engine.warmup import warm_up

    model = fresh()
    warm_up(model, progress=False)
    model.prefill(model.buckets.buckets[0], [[5]])

    @torch.compile(backend="eager")
    def others(x):
        return x + 1

    assert others(torch.zeros(1)).item() == 1
    model.decode([6])


def test_sendnn_compiles_inside_its_warmup_mode_and_deploys_outside_in_fp16(fresh, fake_sendnn):
    import torch

    from spyre_bench.engine.warmup import TIMED_PASSES, warm_up
    from spyre_bench.shapes import BucketSet

    model = fresh(
        compile_backend="sendnn",
        compile_scope="model",
        dtype="float16",
        buckets=BucketSet.parse("2,64,3"),
    )
    assert {parameter.dtype for parameter in model._model.module.parameters()} == {torch.float16}
    warm_up(model, progress=False)
    phases = [word for word in fake_sendnn if word != "static"]
    timed = ["run", "run"] * TIMED_PASSES
    assert phases == ["enter", "compile", "run", "compile", "run", "exit", *timed]
    assert "static" in fake_sendnn
    fake_sendnn.clear()
    model.prefill(model.buckets.buckets[0], [[5]])
    model.decode([6])
    assert fake_sendnn == ["run", "run"]


def test_a_rank_compiles_for_the_card_in_its_turn(fake_sendnn):
    from spyre_bench.engine.compile import sendnn_warmup

    @contextmanager
    def turn():
        fake_sendnn.append("my turn")
        yield
        fake_sendnn.append("the next one's")

    with sendnn_warmup("sendnn", turn()):
        fake_sendnn.append("passes")
    assert fake_sendnn == ["enter", "passes", "my turn", "exit", "the next one's"]


def test_sendnn_refuses_a_dtype_that_the_card_does_not_run(fresh, fake_sendnn):
    with pytest.raises(ValueError, match="'float32' does not run on sendnn: use float16"):
        fresh(compile_backend="sendnn", dtype="float32")


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_equals_the_dense_one(rows, bias):
    import torch

    from spyre_bench.engine.linear import PackedLinear

    linear = torch.nn.Linear(40, 24, bias=bias)
    x = torch.randn(2, rows, 40)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear(linear, rows)(x), linear(x))


def test_layers_with_packed_weights_of_their_own_share_one_compiled_graph():
    import torch

    from spyre_bench.engine.compile import compile_pass, no_compile
    from spyre_bench.engine.linear import PackedLinear

    linears = [torch.nn.Linear(40, 40) for _ in range(3)]
    layers = [PackedLinear(linear, 4) for linear in linears]
    run = compile_pass(lambda layer, x: layer(x).relu(), "shared", "inductor")
    x = torch.randn(4, 40)
    with torch.no_grad():
        run(layers[0], x)
        with no_compile():
            for layer, linear in zip(layers, linears, strict=True):
                torch.testing.assert_close(run(layer, x), linear(x).relu())


def test_a_saved_pass_runs_every_layer_with_its_own_weights(tmp_path):
    import torch

    from spyre_bench.engine.compile import SavedPass
    from spyre_bench.engine.linear import PackedLinear

    def forward(layer, x):
        return layer(x).relu()

    linears = [torch.nn.Linear(40, 40) for _ in range(3)]
    layers = [PackedLinear(linear, 4) for linear in linears]
    x = torch.randn(4, 40)
    for start in ("cold", "warm"):
        run, loaded = SavedPass(forward, "shared", tmp_path), SavedPass.loaded
        with torch.no_grad():
            for layer, linear in zip(layers, linears, strict=True):
                torch.testing.assert_close(run(layer, x), linear(x).relu())
        assert SavedPass.loaded - loaded == (start == "warm")


class Scaled:
    """A layer that has a number of its own, which a trace writes into its graph."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return (x * self.factor).relu()


def run_layer(layer, x):
    return layer(x)


def test_a_saved_pass_refuses_a_layer_that_its_graph_does_not_hold_for(tmp_path):
    import torch

    from spyre_bench.engine.compile import SavedPass

    run = SavedPass(run_layer, "scaled", tmp_path)
    assert run(Scaled(2), torch.ones(3)).tolist() == [2.0] * 3
    assert run(Scaled(2), torch.ones(3)).tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match=r"'layer'\].factor == 2"):
        run(Scaled(3), torch.ones(3))


def test_a_pass_that_was_saved_for_another_layer_or_another_shape_is_compiled_again(tmp_path):
    import torch

    from spyre_bench.engine.compile import SavedPass

    asked = [(2, 3), (2, 3), (5, 3), (5, 3), (5, 4)]
    traced = []
    for factor, size in asked:
        before = SavedPass.traced
        answer = SavedPass(run_layer, "scaled", tmp_path)(Scaled(factor), torch.ones(size))
        assert answer.tolist() == [factor] * size
        traced.append(SavedPass.traced - before)
    assert traced == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("failure", "raised"), [(MemoryError, "MemoryError"), (EOFError, "CodeNotLoaded")]
)
def test_a_saved_pass_is_not_to_blame_where_memory_runs_out(tmp_path, monkeypatch, failure, raised):
    """Only `CodeNotLoaded` discards the artefact."""
    import torch

    from spyre_bench.engine import compile

    (tmp_path / "scaled.pass").write_bytes(b"of an earlier start")

    def load(*_):
        raise failure

    monkeypatch.setattr(compile.AOTCompiledFunction, "deserialize", load)
    with pytest.raises((MemoryError, compile.CodeNotLoaded)) as found:
        compile.SavedPass(run_layer, "scaled", tmp_path)(Scaled(2), torch.ones(3))
    assert type(found.value).__name__ == raised


def test_a_pass_for_which_the_disk_has_no_room_runs_all_the_same_and_leaves_no_half(
    tmp_path, monkeypatch, caplog
):
    import errno

    import torch

    from spyre_bench.engine.compile import SavedPass

    def write_half(file, whole):
        with file.open("wb") as half:
            half.write(whole[: len(whole) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    answer = SavedPass(run_layer, "scaled", tmp_path)(Scaled(2), torch.ones(3))
    assert answer.tolist() == [2.0] * 3
    assert "scaled is not kept, so that the next start traces it: No space left" in caplog.text
    assert not list(tmp_path.glob("*.pass"))


def test_a_pass_that_cannot_be_saved_runs_all_the_same_and_says_so(tmp_path, caplog):
    import torch

    from spyre_bench.engine.compile import SavedPass, no_compile

    class Local(torch.nn.Module):  # a class that no other process can name
        def forward(self, x):
            return x.relu()

    run = SavedPass(run_layer, "local", tmp_path)
    run(Local(), torch.ones(3))
    assert "local cannot be saved whole, so that every start traces it" in caplog.text
    assert not list(tmp_path.iterdir())
    with no_compile():
        assert run.warmed(Local(), torch.ones(3)).tolist() == [1.0] * 3
