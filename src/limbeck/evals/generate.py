"""Generation: a model continues prompts in batches, and what it wrote is kept before anything is made of it.

transformers' `generate` does the work, with keys and values remembered. Prompts of similar length go together, padded on the
left; models that read no padded rows together with what they remember (`LimbeckForCausalLM`) get prompts of equal length. The
model's own generation_config is set aside but for its stop tokens: penalties and temperatures in it are somebody's taste.

`<name>.generations.jsonl` holds a line that says what was asked (`asked`) and then one a sample, added batch by batch. What
was killed goes on from there, with the same samples: each batch has a seed of its own. Suffixes: B rows, T positions.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.errors import LimbeckError, SpecError
from limbeck.evals.chat import stop_ids
from limbeck.evals.subject import EvalModel
from limbeck.paths import write_atomically
from limbeck.progress import progress
from limbeck.spec.evals.decoding import Decoding


@dataclass(frozen=True)
class Prompt:
    """What a model is given to continue."""

    name: str
    text: str
    """For people to read."""
    tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """What a model wrote after a prompt."""

    name: str
    """The prompt's."""
    prompt: str
    text: str
    tokens: tuple[int, ...]
    """Without the stop token."""
    stopped: bool
    """False: it was cut off at the limit."""
    batch: int
    batch_rows: int
    batch_seconds: float
    """From the prompts to the last token of the whole batch."""


def check_fits(model: EvalModel, prompts: Sequence[Prompt], how: Decoding) -> None:
    """`SpecError` where a prompt and its continuation are longer than the model reads."""
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    needed = len(longest.tokens) + how.max_new_tokens
    if model.longest is not None and needed > model.longest:
        raise SpecError(
            f"{model.name} reads {model.longest} tokens, and prompt {longest.name} has {len(longest.tokens)} before "
            f"max_new_tokens={how.max_new_tokens}: lower it or shorten the prompt"
        )


def generate(
    model: EvalModel,
    prompts: Sequence[Prompt],
    how: Decoding,
    *,
    path: Path | None = None,
    stop_strings: Sequence[str] = (),
) -> list[Sample]:
    """A sample of each prompt, in their order; kept in `path`, and what is there of the same asking isn't made again.

    A sample ends before a stop token (`stop_ids`) or one of the `stop_strings`, and after `max_new_tokens` at the latest.
    """
    stops = stop_ids(model)
    batches = batches_of(prompts, size=how.batch_size, padded=model.reader.model.config.model_type != "limbeck")
    kept = _Kept(path, _asked(model, prompts, how, stops, stop_strings))
    samples = {batch: kept.samples(batch) for batch in range(len(batches))}
    missing = [batch for batch, rows in enumerate(batches) if len(samples[batch]) < len(rows)]
    done = len(prompts) - sum(len(batches[batch]) for batch in missing)
    with progress(f"{model.name} writes", total=len(prompts), done=done) as advance:
        for batch in missing:
            chosen = [prompts[row] for row in batches[batch]]
            samples[batch] = _write(model, chosen, how, stops=stops, stop_strings=stop_strings, batch=batch)
            kept.add(samples[batch])
            advance(len(chosen), f"{sum(map(len, samples.values()))} samples")
    of_row = {row: sample for batch, rows in enumerate(batches) for row, sample in zip(rows, samples[batch], strict=True)}
    return [of_row[row] for row in range(len(prompts))]


def read_samples(path: Path) -> list[Sample]:
    """The samples in a file of generations, for another scoring of them; what a killed writer had begun is left out."""
    return [sample for samples in _read(path)[1].values() for sample in samples]


def seconds_per_sample(samples: Sequence[Sample]) -> float:
    """Wall-clock seconds of all batches over the samples: with another batch size it is another."""
    return sum(sample.batch_seconds / sample.batch_rows for sample in samples) / len(samples)


def batches_of(prompts: Sequence[Prompt], *, size: int, padded: bool) -> list[list[int]]:
    """Indices of the prompts that go together, the longest first; without padding, of equal length."""
    batches: list[list[int]] = []
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row].tokens)):
        fits = bool(batches) and len(batches[-1]) < size
        if fits and (padded or len(prompts[batches[-1][0]].tokens) == len(prompts[row].tokens)):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _write(
    model: EvalModel,
    prompts: Sequence[Prompt],
    how: Decoding,
    *,
    stops: Sequence[int],
    stop_strings: Sequence[str],
    batch: int,
) -> list[Sample]:
    """One batch."""
    token_BT, mask_BT = padded_left(prompts, pad=stops[0])
    device = model.reader.device
    seed = int.from_bytes(hashlib.sha256(f"{how.seed} {batch}".encode()).digest()[:8], "little")
    forked = torch.random.fork_rng(devices=cuda_devices(device))
    with decoding_settings(model.reader.model, how, stops), torch.no_grad(), forked:
        torch.manual_seed(seed)
        synchronise(device)
        begun = time.perf_counter()
        try:
            found_BT = model.reader.model.generate(
                input_ids=token_BT.to(device),
                attention_mask=mask_BT.to(device),
                **({"stop_strings": list(stop_strings), "tokenizer": model.tokenizer.backend} if stop_strings else {}),
            )
        except torch.OutOfMemoryError as error:
            raise LimbeckError(f"{len(prompts)} samples at once don't fit into {device}: lower batch_size") from error
        synchronise(device)
        seconds = time.perf_counter() - begun
    samples = []
    for prompt, row in zip(prompts, found_BT[:, token_BT.shape[1] :].tolist(), strict=True):
        tokens, text, stopped = _cut(model, row, stops=stops, stop_strings=stop_strings)
        samples.append(Sample(prompt.name, prompt.text, text, tokens, stopped, batch, len(prompts), seconds))
    return samples


def padded_left(prompts: Sequence[Prompt], *, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask [B, T]."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    token_BT = np.full((len(prompts), longest), pad, dtype=np.int64)
    mask_BT = np.zeros((len(prompts), longest), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        token_BT[row, longest - len(prompt.tokens) :] = prompt.tokens
        mask_BT[row, longest - len(prompt.tokens) :] = 1
    return torch.from_numpy(token_BT), torch.from_numpy(mask_BT)


@contextmanager
def decoding_settings(model: Any, how: Decoding, stops: Sequence[int]) -> Iterator[None]:
    """The model with our settings of generation and no others."""
    from transformers import GenerationConfig

    sampled = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
    theirs = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
        use_cache=True,
        **(sampled if how.temperature > 0 else {"do_sample": False}),
    )
    try:
        yield
    finally:
        model.generation_config = theirs


def _cut(
    model: EvalModel, row: Sequence[int], *, stops: Sequence[int], stop_strings: Sequence[str]
) -> tuple[tuple[int, ...], str, bool]:
    """A row up to where it stopped, its text, and whether it did. A row that stopped early is filled up with a stop token."""
    end = next((place for place, token in enumerate(row) if token in stops), len(row))
    tokens, stopped = tuple(row[:end]), end < len(row)
    text = decoded(model, tokens)
    found = [text.index(each) for each in stop_strings if each in text]
    if not found:
        return tokens, text, stopped
    while any(each in decoded(model, tokens) for each in stop_strings):
        tokens = tokens[:-1]
    return tokens, text[: min(found)], True


def decoded(model: EvalModel, tokens: Sequence[int]) -> str:
    """The text of tokens, special ones shown."""
    text: str = model.tokenizer.backend.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def synchronise(device: torch.device) -> None:
    """Wait until a CUDA device has done what it was asked, so that clocks mean something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cuda_devices(device: torch.device) -> list[torch.device]:
    """Those whose random numbers a fork must keep."""
    return [device] if device.type == "cuda" else []


def _asked(
    model: EvalModel, prompts: Sequence[Prompt], how: Decoding, stops: Sequence[int], stop_strings: Sequence[str]
) -> dict[str, Any]:
    """What makes samples these and no others."""
    read = json.dumps([[prompt.name, prompt.tokens.tolist()] for prompt in prompts])
    return {
        "model": model.name,
        "weights": model.reader.weights,
        "dtype": str(model.reader.dtype),
        "device": model.reader.device.type,
        "decoding": {key: getattr(how, key) for key in Decoding.model_fields},
        "stop_ids": list(stops),
        "stop_strings": list(stop_strings),
        "prompts": hashlib.sha256(read.encode()).hexdigest()[:32],
    }


class _Kept:
    """The samples in a file; without a path, none are kept."""

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self._path = path
        self._samples: dict[int, list[Sample]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        there, samples = _read(path) if path.is_file() else (None, {})
        self._samples = samples if there == asked else {}
        whole = [_line(sample) for batch in self._samples.values() for sample in batch]
        write_atomically(path, "".join([json.dumps({"asked": asked}) + "\n", *whole]))

    def samples(self, batch: int) -> list[Sample]:
        return self._samples.get(batch, [])

    def add(self, samples: Sequence[Sample]) -> None:
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(_line(sample) for sample in samples)
            file.flush()
            os.fsync(file.fileno())


def _line(sample: Sample) -> str:
    return json.dumps(asdict(sample), ensure_ascii=True) + "\n"


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[int, list[Sample]]]:
    """What was asked, and the samples of whole batches: the last may have been cut off."""
    asked: dict[str, Any] | None = None
    batches: dict[int, list[Sample]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            values = json.loads(line)
            if "asked" in values:
                asked = values["asked"]
                continue
            sample = Sample(**{**values, "tokens": tuple(values["tokens"])})
        except (ValueError, TypeError, KeyError):
            break
        batches.setdefault(sample.batch, []).append(sample)
    return asked, {batch: rows for batch, rows in batches.items() if len(rows) == rows[0].batch_rows}
