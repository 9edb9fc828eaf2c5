"""A user's script, which has computed something before: prompts and tokens as one JSON line. Run
by test_processes.py."""

import json
import sys


def main():
    import torch
    from vllm import LLM, SamplingParams

    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # with as many threads as the test gives it
    model, spyre, prompts, max_tokens, *more = json.loads(sys.argv[1])
    llm = LLM(model, additional_config={"spyre": spyre}, **dict(*more))
    results = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=max_tokens))
    print(json.dumps([list(result.outputs[0].token_ids) for result in results]))


if __name__ == "__main__":  # vLLM may start its engine process from this file again
    main()
