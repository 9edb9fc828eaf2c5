"""A user's script: prompts and tokens as one JSON line. Run by test_processes.py."""

import json
import sys


def main():
    from vllm import LLM, SamplingParams

    model, spyre, prompts, max_tokens, *more = json.loads(sys.argv[1])
    llm = LLM(model, additional_config={"spyre": spyre}, **dict(*more))
    results = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=max_tokens))
    print(json.dumps([list(result.outputs[0].token_ids) for result in results]))


if __name__ == "__main__":  # vLLM may start its engine process from this file again
    main()
