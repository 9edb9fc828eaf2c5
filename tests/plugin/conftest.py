"""One engine on a tiny model, in this process, for all tests of single parameters."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spyre_bench.plugin.environment import NAMES
from tests.plugin.servers import PROMPTS, Run

BUCKETS = [[4, 64, 16], [2, 192, 32]]
SHAPES = {"prefill_shapes": "64,256", "decode_shapes": "2,256 4,128", "blocks": 16}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session", autouse=True)
def vllm_environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "spyre")
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        for name in NAMES:  # an image sets buckets
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def without_weights() -> Path:
    """SmolLM2's sizes and tokenizer, and no weights: for simulated devices."""
    from spyre_bench.checkpoints.config_only import config_only_directory
    from spyre_bench.model_sizes import preset

    sizes = preset("smollm2-135m")
    return config_only_directory(sizes.name, sizes.as_config())


@pytest.fixture(scope="session")
def added_token(tiny_llama, tmp_path_factory) -> Path:
    """The tiny model with a tokenizer that was given one token more, which ends its sequences, and
    whose embedding was never resized."""
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("added_token") / "model"
    shutil.copytree(tiny_llama, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"eos_token": "<added>"})
    tokenizer.save_pretrained(directory)
    assert (
        tokenizer.eos_token_id == json.loads((directory / "config.json").read_text())["vocab_size"]
    )
    return directory


@pytest.fixture(scope="session")
def pass_log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("passes") / "passes.jsonl"


@pytest.fixture(scope="session")
def llm(tiny_llama, pass_log):
    # `best_fit` goes by measured seconds, which of a tiny model are noise
    return make_llm(tiny_llama, buckets=BUCKETS, pass_log=str(pass_log), policy="skip")


@pytest.fixture(scope="session")
def continuous_llm(tiny_llama):
    with platform_as_before():
        return make_llm(tiny_llama, batching="continuous", **SHAPES)


def make_llm(model: Path, **spyre):
    from vllm import LLM

    from tests.plugin.force_token import ForceToken

    return LLM(
        str(model),
        logits_processors=[ForceToken],
        reasoning_config={"reasoning_start_str": "[", "reasoning_end_str": "]"},
        additional_config={"spyre": spyre | {"compile_backend": "eager"}},
    )


@contextmanager
def platform_as_before() -> Iterator[None]:
    """The platform checks requests against the engine built last: afterwards as before."""
    from spyre_bench.plugin.platform import SpyrePlatform

    before = SpyrePlatform._config, SpyrePlatform._vllm_config
    try:
        yield
    finally:
        SpyrePlatform._config, SpyrePlatform._vllm_config = before


@contextmanager
def requests_of(llm) -> Iterator[None]:
    """Meanwhile the platform checks requests against this one of two engines in the process."""
    from spyre_bench.plugin.config import SpyreConfig
    from spyre_bench.plugin.platform import SpyrePlatform

    config = llm.llm_engine.vllm_config
    with platform_as_before():
        SpyrePlatform._config, SpyrePlatform._vllm_config = SpyreConfig.of(config), config
        yield


@pytest.fixture(autouse=True)
def checked_against_its_engine(request) -> Iterator[None]:
    """A test of the shared engine has its requests checked against that one, whatever engine other
    tests have built since."""
    if "llm" not in request.fixturenames:
        yield
        return
    with requests_of(request.getfixturevalue("llm")):
        yield


@pytest.fixture
def new_passes(llm, pass_log) -> Callable[[], list[dict]]:
    """The lines that the pass log gained since the test began."""
    before = len(pass_log.read_text().splitlines())
    return lambda: [json.loads(line) for line in pass_log.read_text().splitlines()[before:]]


@pytest.fixture(scope="session")
def reference(tiny_llama):
    return Reference(tiny_llama)


class Reference:
    """The same model in Hugging Face transformers, token by token, without cache or padding."""

    def __init__(self, directory: Path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)

    def logits(self, tokens: list[int]):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([tokens])).logits[0, -1]

    def greedy(self, prompt: str, steps: int, change=lambda logits, output: logits) -> list[int]:
        """The likeliest tokens, end of sequence ignored, after `change(logits, output so far)`."""
        tokens, output = self.tokenizer(prompt)["input_ids"], []
        for _ in range(steps):
            output.append(int(change(self.logits(tokens + output).clone(), output).argmax()))
        return output

    def prompt_where(self, holds: Callable[[str], bool]) -> str:
        """The first prompt of a fixed list for which a test can tell something."""
        return next(p for p in (f"{start} prompt" for start in "abcdefghijklmnop") if holds(p))


@pytest.fixture(scope="session")
def expected(smollm2) -> list[list[int]]:
    """What Hugging Face transformers says to each prompt, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()

    def answer(prompt: str) -> list[int]:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    return [answer(prompt) for prompt in PROMPTS]


@pytest.fixture
def start(tmp_path):
    """Starts a command as a `Run`, which is gone with the test."""
    runs = []

    def run(*command: str, **environment: str) -> Run:
        runs.append(Run(list(command), tmp_path / f"{len(runs)}.log", **environment))
        return runs[-1]

    yield run
    for one in runs:
        one.clean_up()
