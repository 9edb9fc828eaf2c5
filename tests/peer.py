"""What `make bench-peers` runs under each vLLM, the backend's and its own CPU build: an engine's
settings and requests as JSON on stdin, tokens a second as a line of JSON."""

import json
import statistics
import sys
import time

REPETITIONS = 3


def main() -> None:
    from vllm import LLM, SamplingParams

    asked = json.load(sys.stdin)
    started = time.perf_counter()
    llm = LLM(**asked["engine"], disable_log_stats=True)
    ready_s = time.perf_counter() - started
    prompts = [
        {"prompt_token_ids": [7 + (row * 31 + place) % 1000 for place in range(length)]}
        for row, length in enumerate(asked["prompt_tokens"])
    ]
    parameters = [
        SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        for tokens in asked["output_tokens"]
    ]
    llm.generate(prompts[:4], parameters[:4], use_tqdm=False)
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        answers = llm.generate(prompts, parameters, use_tqdm=False)
        seconds.append(time.perf_counter() - started)
    assert [len(it.outputs[0].token_ids) for it in answers] == asked["output_tokens"]
    tokens = sum(asked["output_tokens"])
    print()
    print(json.dumps({"tokens_s": tokens / statistics.median(seconds), "ready_s": ready_s}))


if __name__ == "__main__":
    main()
