"""How long models of a family of shapes take for a token: measured for a few, and told from those for thousands.

A step of decoding waits for every layer in turn and reads every weight and everything remembered once. So its time is taken for
a + b layers + c (parameters that a token touches) + d (numbers remembered of the context), with a to d no less than zero,
fitted to the model and to shapes that shrink it along one axis each, with random weights. What is chosen by that is measured
afterwards.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from limbeck.compute import pick_dtype
from limbeck.data.tokenizers import Tokenizer
from limbeck.evals.latency import time_decode
from limbeck.evals.subject import EvalModel
from limbeck.paths import cache_folder, write_atomically
from limbeck.plan.kv_cache import kv_bytes
from limbeck.plan.prune_target import Costs, Workload, remembered_layers
from limbeck.progress import progress
from limbeck.spec.evals.latency import Latency
from limbeck.surgery.cut import build
from limbeck.surgery.identity import config_digest, digest_of
from limbeck.teachers.files import TeacherFiles
from limbeck.teachers.huggingface import Teacher

Config = Mapping[str, Any]
FORMAT = 1
"""Of times: another one where they are taken otherwise."""


def decode_ms(model: Any, tokenizer: Tokenizer, workload: Workload, *, device: torch.device) -> float:
    """Median milliseconds for a token of each of `batch_size` texts after `context` tokens, in the dtype that is fastest here.

    The model is moved to the device and that dtype.
    """
    dtype = pick_dtype("auto", device)
    moved = model.to(device, dtype)
    vocab_size = int(model.config.get_text_config().vocab_size)
    reader = Teacher(moved, TeacherFiles("", ""), vocab_size, None, dtype, device, "unknown")
    spec = Latency(batch_sizes=(workload.batch_size,), context_tokens=workload.context)
    return time_decode(EvalModel("", reader, tokenizer, None, None), spec, batch_size=workload.batch_size).median_ms


def fitted_decode_ms(
    configs: Sequence[Config], costs: Sequence[Costs], tokenizer: Tokenizer, workload: Workload, *, device: torch.device
) -> tuple[Callable[[Config, Costs], float], list[float]]:
    """A guess for every shape, from the times of these, of random weights; and those times.

    They are kept in the user cache: timed anew they would guess otherwise, and other shapes would be chosen.
    """
    times = []
    with progress("decoding against the clock", total=len(configs)) as advance:
        for config in configs:
            times.append(_remembered_ms(config, tokenizer, workload, device=device))
            advance(1, note=f"{times[-1]:.4g} ms")
    rows_NF = np.array([_features(*each, workload=workload) for each in zip(configs, costs, strict=True)])
    scale_F = rows_NF.max(0)
    weights_F, _ = nnls(rows_NF / scale_F / np.array(times)[:, None], np.ones(len(times)))

    def guess(config: Config, of: Costs) -> float:
        return float(_features(config, of, workload=workload) / scale_F @ weights_F)

    return guess, times


def _remembered_ms(config: Config, tokenizer: Tokenizer, workload: Workload, *, device: torch.device) -> float:
    """Of a model of random weights."""
    dtype = pick_dtype("auto", device)
    about = {
        "format": FORMAT,
        "config": config_digest(config),
        "workload": [workload.context, workload.batch_size],
        "device": device_name(device),
        "dtype": str(dtype),
    }
    path = cache_folder() / "surgery" / f"decode-{digest_of(about)}.json"
    if path.is_file():
        return float(json.loads(path.read_text(encoding="utf-8")))
    model = build(config, dtype=dtype).eval().requires_grad_(False)
    found = decode_ms(model, tokenizer, workload, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found))
    return found


def device_name(device: torch.device) -> str:
    """What tells one clock from others."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} of {torch.get_num_threads()} threads"


def _features(config: Config, costs: Costs, *, workload: Workload) -> np.ndarray:
    remembered = remembered_layers(config)
    held = workload.batch_size * kv_bytes(remembered, tokens=workload.context, bytes_per_number=1.0)
    return np.array([1.0, float(len(remembered)), float(costs.active_parameters), max(held, 1.0)])
