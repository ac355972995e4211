"""Runs llama.cpp for engine: one RPC shard, or the whole server.

    python3 - worker '{"runtime": …, "address": "127.0.0.1:50052", "threads": 1}'
    python3 - server '{"runtime": …, "address": …, "weights": …, "shards": […], …}'

The engine feeds this file to the interpreter's standard input. File descriptor 3
is a pipe to the engine: a byte is written to it five times a second, from a Python
thread, as long as this process can run. When the pipe is closed the engine is gone
and so is this process.
"""
import ctypes
import json
import os
import signal
import sys
import threading
import time

BEAT_FD = 3
BEAT_EVERY = 0.2  # seconds

# llama.cpp's levels: the first one tells which layers and caches lie on which
# shard, the second a few lines a request.
VERBOSE, TERSE = 4, 3


def beat():
    while True:
        try:
            os.write(BEAT_FD, b".")
        except BlockingIOError:
            pass  # the engine is stopped: it will read what is in the pipe
        except OSError:
            os._exit(0)
        time.sleep(BEAT_EVERY)


def fail(message):
    print("millrace:", message, file=sys.stderr, flush=True)
    os._exit(1)


def load(runtime):
    """Imports the server so that the RPC plugin finds its ggml symbols."""
    sys.path.insert(0, runtime)
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    from xllamacpp import xllamacpp

    return xllamacpp, ctypes.CDLL(xllamacpp.__file__)


def load_rpc(ggml, runtime):
    """Loads the RPC plugin and returns a function that looks up its functions."""
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    plugin = ggml.ggml_backend_load(os.path.join(runtime, "libggml-rpc.so").encode())
    if not plugin:
        fail("libggml-rpc.so does not load: it was built from another version")
    lookup = ggml.ggml_backend_reg_get_proc_address
    lookup.restype = ctypes.c_void_p
    lookup.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

    def function(name, result, *arguments):
        address = lookup(plugin, name)
        if not address:
            fail("libggml-rpc.so lacks " + name.decode())
        return ctypes.CFUNCTYPE(result, *arguments)(address)

    return function


def worker(c):
    _, ggml = load(c["runtime"])
    start = load_rpc(ggml, c["runtime"])(
        b"ggml_backend_rpc_start_server", None,
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p))
    # The first GPU if there is one: enum ggml_backend_dev_type, CPU 0, GPU 1.
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    device = ggml.ggml_backend_dev_by_type(1) or ggml.ggml_backend_dev_by_type(0)
    start(c["address"].encode(), None, c["threads"], 1, (ctypes.c_void_p * 1)(device))
    fail("the shard can't listen on " + c["address"])


def add_shards(ggml, c):
    """Makes each shard's device one of ours and returns the number of devices."""
    if not c["shards"]:
        return
    add = load_rpc(ggml, c["runtime"])(b"ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    for shard in c["shards"]:
        reg = add(shard["address"].encode())
        if not reg:
            fail("shard " + shard["address"] + " does not answer")
        ggml.ggml_backend_register(reg)


def parameters(llama, c):
    p = llama.CommonParams()
    p.model.path = c["weights"]
    p.model_alias = {c["model"]}
    host, _, port = c["address"].rpartition(":")
    p.hostnames, p.port = [host.strip("[]")], int(port)
    p.n_parallel = c["slots"]
    p.n_ctx = c["context_tokens"] * c["slots"]
    p.n_batch = p.n_ubatch = c["batch_tokens"]
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = c["threads"]
    p.n_threads_http = c["http_threads"]
    p.cache_ram_mib = c["cache_mib"]
    p.embedding = True
    p.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # The same arithmetic whole and sharded, whatever each device would choose.
    p.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    p.use_jinja = p.cache_prompt = p.endpoint_metrics = p.endpoint_slots = True
    p.slot_save_path = c.get("state_folder", "")
    p.verbosity = VERBOSE
    p.warmup = p.ui = p.fit_params = False
    if c["shards"]:
        p.n_gpu_layers = 99
        split = [s["share"] for s in c["shards"]]
        p.tensor_split = split + [0.0] * (len(p.tensor_split) - len(split))
    return p


def server(c):
    llama, ggml = load(c["runtime"])
    add_shards(ggml, c)
    running = llama.Server(parameters(llama, c))
    ctypes.c_int.in_dll(ggml, "common_log_verbosity_thold").value = TERSE
    print("millrace: listening on", running.listening_address, file=sys.stderr, flush=True)
    # The server runs in threads of its own; a signal ends the process.
    while True:
        signal.pause()


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_blocking(BEAT_FD, False)
    os.set_inheritable(BEAT_FD, False)
    threading.Thread(target=beat, daemon=True).start()
    mode, config = sys.argv[1], json.loads(sys.argv[2])
    {"worker": worker, "server": server}[mode](config)


main()
