"""vLLM's asynchronous engine in this process, as other servers build on it."""

import asyncio

import pytest

from tests.plugin.conftest import platform_as_before

pytestmark = pytest.mark.slow

SPYRE = {"buckets": [[4, 64, 16], [2, 192, 32]], "compile_backend": "eager"}
PROMPTS = ["a prompt", "another prompt", "b prompt", "the third one is longer than the others"]


@pytest.fixture
def configured():
    """The session's other engine lives on, and its buckets with it."""
    with platform_as_before():
        yield


def test_the_async_engine_answers_streams_and_takes_aborts(tiny_llama, reference, configured):
    asyncio.run(converse(str(tiny_llama), reference))


async def converse(model: str, reference) -> None:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=model, additional_config={"spyre": SPYRE})
    )
    try:
        wanted = [reference.greedy(prompt, 8) for prompt in PROMPTS]
        answers = await asyncio.gather(
            *(tokens(engine, name, prompt) for name, prompt in enumerate(PROMPTS))
        )
        assert answers == wanted
        leaving = asyncio.ensure_future(tokens(engine, "leaving", PROMPTS[0], most=2))
        staying = asyncio.ensure_future(tokens(engine, "staying", PROMPTS[1]))
        assert await staying == wanted[1]
        assert await leaving == wanted[0][:2]
        with pytest.raises(ValueError, match="no bucket fits prompt_tokens=193"):
            await tokens(engine, "long", {"prompt_token_ids": [5] * 193})
        assert await tokens(engine, "after", PROMPTS[2]) == wanted[2]
    finally:
        engine.shutdown()


async def tokens(engine, name, prompt, most: int = 8) -> list[int]:
    """The first tokens of a greedy answer, token by token; it is aborted after `most`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(
        max_tokens=8, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    found = []
    async for part in engine.generate(prompt, parameters, str(name)):
        found += part.outputs[0].token_ids
        if len(found) >= most:
            break
    await engine.abort(str(name))
    return found[:most]  # a part may bring more than one
