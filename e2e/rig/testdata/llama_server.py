"""Runs llama.cpp's own HTTP server, as anybody would, without our engine.

    python3 llama_server.py RUNTIME WEIGHTS HOST:PORT

RUNTIME is the folder with the xllamacpp package. It prints "listening" once it
serves, and ends when its standard input is closed.
"""
import sys

runtime, weights, address = sys.argv[1:]
host, _, port = address.rpartition(":")
sys.path.insert(0, runtime)
from xllamacpp import xllamacpp as llama  # noqa: E402

p = llama.CommonParams()
p.model.path = weights
p.model_alias = {"smollm2"}
p.hostnames, p.port = [host], int(port)
p.n_parallel = 4
p.n_ctx = 4 * 4096
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.n_threads_http = 8
p.cache_ram_mib = 256
p.use_jinja = p.cache_prompt = p.endpoint_metrics = True
p.warmup = p.ui = p.fit_params = False
server = llama.Server(p)
print("listening", flush=True)
sys.stdin.read()
