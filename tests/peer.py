"""One engine of `tests/peers.py`, in whatever environment has it: settings come as a line of JSON,
then a load a line, and each is answered by what running it once took.

`LLM` is vLLM of this interpreter, with the backend or with its own CPU kernels; anything else is
transformers' `generate`. Nothing of ours is imported.
"""

import json
import os
import statistics
import sys
import time


def prompts_of(load: dict) -> list[list[int]]:
    return [
        [7 + (row * 31 + place) % 1000 for place in range(length)]
        for row, length in enumerate(load["prompt_tokens"])
    ]


class VLLM:
    def __init__(self, settings: dict):
        from vllm import LLM

        self.engine = LLM(**settings["engine"], disable_log_stats=True).llm_engine
        self.asked = 0

    def run(self, load: dict) -> dict:
        """All requests at once. A decode step is one that has a token for every request, as the
        step before had, or an earlier one."""
        from vllm import SamplingParams

        prompts = prompts_of(load)
        started = time.perf_counter()
        for prompt, tokens in zip(prompts, load["output_tokens"], strict=True):
            self.asked += 1
            self.engine.add_request(
                str(self.asked),
                {"prompt_token_ids": prompt},
                SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            )
        ends, full, answered = [started], [], {}
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            ends.append(time.perf_counter())
            answered |= {one.request_id: len(one.outputs[0].token_ids) for one in outputs}
            if len(outputs) == len(prompts):
                full.append(ends[-1] - ends[-2])
        assert sorted(answered.values()) == sorted(load["output_tokens"]), answered
        decodes = full[1:]  # the first of them may be the prefill
        return {"seconds": ends[-1] - started} | (
            {"decode_s": statistics.median(decodes)} if decodes else {}
        )


class Transformers:
    def __init__(self, settings: dict):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        engine = settings["engine"]
        self.rows = settings["rows"]
        self.model = AutoModelForCausalLM.from_pretrained(
            engine["model"], dtype=getattr(torch, engine["dtype"])
        ).eval()

    def run(self, load: dict) -> dict:
        """Batches of `rows` in order, padded to their longest prompt, run to their longest
        answer."""
        prompts, outputs = prompts_of(load), load["output_tokens"]
        started = time.perf_counter()
        for first in range(0, len(prompts), self.rows):
            batch = slice(first, first + self.rows)
            self._generate(prompts[batch], max(outputs[batch]))
        return {"seconds": time.perf_counter() - started}

    def _generate(self, prompts: list[list[int]], tokens: int) -> None:
        import torch

        longest = max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
        self.model.generate(
            padded,
            attention_mask=(padded > 0).long(),
            do_sample=False,
            pad_token_id=0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    settings = json.loads(sys.stdin.readline())
    engine = {"vllm": VLLM, "transformers": Transformers}[settings["by"]](settings)
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        print(json.dumps(engine.run(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
