"""One measurement of one consumer: load a checkpoint, read a prompt, write tokens. Run as a program of its own:

    python -P driver.py JOB.json        # with the Python that has the consumer; AlphaQuant need not be there

JOB.json is a `measure.Job`; what was measured goes as JSON to the file that it names. A warm-up comes before the clocks
start, since weights may be decoded at first use. Prompts are random token ids, equal for everybody.
"""

from __future__ import annotations

import collections
import importlib
import importlib.util
import inspect
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]
_WARM_UP_TOKENS = 2
_CODES = ("weight_packed", "qweight")
"""Leaves of modules that multiply with packed weights."""
_PACKAGES = ("transformers", "torch", "compressed-tensors", "gptqmodel", "vllm")


def main() -> None:
    """Measure what the job says and leave the report."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    report = _RUNNERS[job["consumer"]](job)
    report |= {"peak_bytes": _peak_bytes(), "versions": _versions()}
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


def prompts(job: Job, vocabulary: int, seed: int) -> list[list[int]]:
    """Token ids of every sequence of the batch."""
    draw = random.Random(seed)
    count, length = job["batch_size"], job["prompt_tokens"]
    return [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


def _with_transformers(job: Job) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    if job["patched"]:  # without it, experts of several formats are decoded wrongly and in silence
        importlib.import_module("alphaquant.hf")
    _import_model(job)

    def load(device: Any) -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            job["checkpoint"], dtype="auto", trust_remote_code=job["trust_remote_code"]
        )
        return model.to(device)

    return _torch_model(job, load)


def _with_alphaquant(job: Job) -> dict[str, Any]:
    import torch

    from alphaquant.models.loading import load_model
    from alphaquant.models.native import teach_transformers

    raw = json.loads((Path(job["checkpoint"]) / "config.json").read_text(encoding="utf-8"))
    teach_transformers(str(raw.get("model_type")))
    _import_model(job)
    dtype = getattr(torch, job["dtype"])

    def load(device: Any) -> Any:
        return load_model(
            job["checkpoint"], device, job["trust_remote_code"], dtype, job["architecture"]
        )

    return _torch_model(job, load)


def _with_gptqmodel(job: Job) -> dict[str, Any]:
    from gptqmodel import GPTQModel

    def load(device: Any) -> Any:
        loaded = GPTQModel.load(
            job["checkpoint"], device=str(device), trust_remote_code=job["trust_remote_code"]
        )
        return loaded.model

    return _torch_model(job, load)


def _import_model(job: Job) -> None:
    """Import the model's code, which transformers puts off to the first loading, before the clock starts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = job["trust_remote_code"]
    config = AutoConfig.from_pretrained(job["checkpoint"], trust_remote_code=trust)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    if job["storage"] == "compressed-tensors" and importlib.util.find_spec("compressed_tensors"):
        importlib.import_module("compressed_tensors")


def _torch_model(job: Job, load: Callable[[Any], Any]) -> dict[str, Any]:
    """A model that is a torch module, whoever loaded it."""
    import torch

    name = job["device"]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    began = time.perf_counter()
    model = load(device).eval()
    wait()
    loaded = time.perf_counter() - began
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.tensor(prompts(job, vocabulary, 0), device=device)
    with torch.inference_mode():
        _generate(model, tokens, _WARM_UP_TOKENS, wait)
        prefill, decode = _generate(model, tokens, job["new_tokens"], wait)
    return {
        "load_seconds": loaded,
        "prefill_seconds": prefill,
        "decode_seconds": decode,
        "computed_with": computed_with(model, job["storage"] != "dense"),
        "device": device.type,
        "device_peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def _generate(model: Any, tokens: Any, count: int, wait: Callable[[], None]) -> tuple[float, float]:
    """Seconds of reading `tokens` `[batch, prompt]`, and of writing `count` more, one at a time, greedily."""
    few = "logits_to_keep" in inspect.signature(model.forward).parameters
    began = time.perf_counter()
    out = model(input_ids=tokens, use_cache=True, **({"logits_to_keep": 1} if few else {}))
    following = out.logits[:, -1:].argmax(-1)
    wait()
    read = time.perf_counter()
    for _ in range(count):
        out = model(input_ids=following, past_key_values=out.past_key_values, use_cache=True)
        following = out.logits[:, -1:].argmax(-1)
    wait()
    return read - began, time.perf_counter() - read


def computed_with(model: Any, packed: bool) -> str:
    """What the linears of a torch model multiplied with, told by the tensors that it holds after a pass."""
    import torch

    kernels: collections.Counter[str] = collections.Counter()
    dtypes: collections.Counter[str] = collections.Counter()
    for module in model.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            small = tensor.element_size() == 1 and tensor.dtype != torch.bool
            if name in _CODES or (small and tensor.dim() >= 2):
                kernels[type(module).__name__] += 1
            elif tensor.dim() >= 2 and tensor.is_floating_point():
                dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    if kernels:
        return f"packed weights, {kernels.most_common(1)[0][0]}"
    dtype = dtypes.most_common(1)[0][0]
    if not packed:
        return f"{dtype} weights"
    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    rounded = any(getattr(scheme, "input_activations", None) for scheme in schemes)
    return f"weights decoded to {dtype}" + ", inputs rounded in software" * rounded


def _with_vllm(job: Job) -> dict[str, Any]:
    # in this process, where its memory is seen
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    from vllm import LLM, SamplingParams

    length = job["prompt_tokens"] + job["new_tokens"] + 1
    began = time.perf_counter()
    engine = LLM(
        model=job["checkpoint"],
        max_model_len=length,
        enable_prefix_caching=False,
        trust_remote_code=job["trust_remote_code"],
        skip_tokenizer_init=True,
    )
    loaded = time.perf_counter() - began
    model = engine.llm_engine.model_config

    def seconds(count: int, seed: int) -> float:
        asked = [{"prompt_token_ids": ids} for ids in prompts(job, model.get_vocab_size(), seed)]
        settings = SamplingParams(
            max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        engine.generate(asked, settings, use_tqdm=False)
        return time.perf_counter() - start

    seconds(_WARM_UP_TOKENS, 0)
    first, all_ = seconds(1, 1), seconds(job["new_tokens"] + 1, 1)
    cuda = torch.cuda.is_available()
    return {
        "load_seconds": loaded,
        "prefill_seconds": first,
        "decode_seconds": all_ - first,
        "computed_with": f"vLLM's kernels for {model.quantization or model.dtype}",
        "device": "cuda" if cuda else "cpu",
        "device_peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


_RUNNERS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "transformers": _with_transformers,
    "alphaquant": _with_alphaquant,
    "gptqmodel": _with_gptqmodel,
    "vllm": _with_vllm,
}


def _nothing() -> None:
    """A CPU has finished when a call returns."""


def _peak_bytes() -> int:
    """The most memory that this process had, pages of mapped files included."""
    try:
        # not getrusage, which begins with the size of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
