"""Loads the mesh with GuideLLM, as people measure servers.

Usage: load.py BASE_URL MODEL. Prints a JSON object: by row, what GuideLLM reports of its
requests, or what it raised.
"""

import asyncio
import json
import logging
import os
import sys

# One process sends everything, and nothing is fetched.
os.environ.update(GUIDELLM__MAX_WORKER_PROCESSES="1", GUIDELLM__SCHEDULER_START_DELAY="0", GUIDELLM__LOGGING__DISABLED="true", HF_HUB_OFFLINE="1")

from guidellm.benchmark.entrypoints import benchmark_generative_text
from guidellm.config import settings

rows = {}
data = [{"prompt": f"Count to {n}.", "output_tokens_count": 5} for n in range(2, 10)]


def row(name, base, model, route, rate_type, rate):
    """Adds a row: how many requests went well, how many did not, and what the good ones report."""
    settings.preferred_route = route
    try:
        report, _ = asyncio.run(benchmark_generative_text(
            target=base, backend_type="openai_http", backend_args=None, model=model, processor=None, processor_args=None,
            data=data, data_args=None, data_sampler=None, rate_type=rate_type, rate=rate, max_seconds=60, max_requests=6,
            warmup_percent=None, cooldown_percent=None, output_path=None, output_extras=None, output_sampling=None, random_seed=1,
            show_progress=False, output_console=False))
        done = report.benchmarks[0].requests
        good = done.successful
        rows[name] = str((len(good), len(done.errored), sorted({r.output_tokens for r in good}), all(r.prompt_tokens > 3 and r.time_to_first_token_ms > 0 for r in good)))
    except Exception as e:
        rows[name] = f"{type(e).__name__} {str(e)[:300]}"


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    base, model = sys.argv[1:3]
    row("guidellm_chat", base, model, "chat_completions", "concurrent", 3.0)
    row("guidellm_completions", base, model, "text_completions", "synchronous", None)
    row("guidellm_model", base, "nobody", "chat_completions", "synchronous", None)
    print(json.dumps(rows))
