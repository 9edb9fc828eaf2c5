"""vLLM's client (`vllm bench serve`), one run after another in one process: each command of its own
would import vLLM first, nine seconds of work.

A line of stdin is the options of a run, as a JSON list; its line on stdout is true, or false with
the reason on stderr, where everything goes that a run prints. Ends with its stdin.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterable
from typing import TextIO

from vllm.benchmarks import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        answer(sys.stdin, answers)


def answer(lines: Iterable[str], answers: TextIO) -> None:
    """Makes the run of every line before it reads the next."""
    for line in lines:
        print(json.dumps(_went_well(json.loads(line))), file=answers, flush=True)


def _went_well(options: list[str]) -> bool:
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    try:
        serve.main(parser.parse_args(options))
    except (Exception, SystemExit):  # whatever ends a run, not the next one
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    main()
