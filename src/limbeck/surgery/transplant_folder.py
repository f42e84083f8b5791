"""A transplanted model as a Hugging Face folder: config.json, safetensors (float32), the new tokenizer with its chat template,
generation settings, and `transplant.json`, which says which rows were copied, how the others were made, and their norms.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from limbeck.compute import pick_device
from limbeck.data.token_bytes import token_bytes
from limbeck.data.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from limbeck.errors import LimbeckError, SpecError
from limbeck.progress import say
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.students.causal_lm import transformers_quiet
from limbeck.students.hf import published
from limbeck.students.pretrained import load_causal_lm, source_of
from limbeck.surgery.transplant import OF_DONORS, Asked, Donor, Transplanted, require_plain, transplant

TRANSPLANT = "transplant.json"
ALIKE = 0.2
"""How far the mean norm of made rows may be from that of copied ones before it is said."""


def transplant_folder(
    model: str, tokenizer: str, folder: Path, *, asked: Asked, donor: str | None = None, device: torch.device | None = None
) -> dict[str, Any]:
    """Write `model` with another tokenizer to `folder`, which must not exist. Returns what `transplant.json` holds.

    `model`, `tokenizer` and `donor` are folders, hub ids or `smollm2`. `SpecError` or `DataError` for what cannot be.
    """
    if folder.exists():
        raise SpecError(f"{folder} exists: name another folder")
    old, new = _tokenizer(model), _tokenizer(tokenizer)
    token_bytes(old), token_bytes(new)  # refuses what has no byte-exact form before a model is loaded
    spec = HuggingFaceStudent(model=model)
    given = _donor(donor, new) if donor is not None and asked.method in OF_DONORS else None
    causal_lm = load_causal_lm(spec)
    require_plain(causal_lm, asked, given)
    done = transplant(causal_lm, old=old, new=new, asked=asked, donor=given, device=device or pick_device("auto"))
    about = record(done, model=model, tokenizer=tokenizer, donor=donor, asked=asked)
    with published(folder) as partial:
        with transformers_quiet(f"{folder} cannot be written", error=LimbeckError):
            causal_lm.save_pretrained(partial)
        for path in partial.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes for the owner alone, and a model folder is there to be read
        save_tokenizer(new, partial)
        (partial / TRANSPLANT).write_text(json.dumps(about, indent=1, allow_nan=False), encoding="utf-8")
        (partial / "README.md").write_text(_model_card(about), encoding="utf-8")
    _warn(done)
    return about


def record(done: Transplanted, *, model: str, tokenizer: str, donor: str | None, asked: Asked) -> dict[str, Any]:
    """The contents of `transplant.json`."""
    found = done.vocabulary
    copied = found.old_W >= 0
    special = int((copied & found.new.special_V).sum())
    return {
        "model": model,
        "tokenizer": tokenizer,
        "donor": donor,
        "asked": asdict(asked),
        "tied": done.tied,
        "vocab_size": found.size,
        "tokens": {
            "copied": int(copied.sum()) - special,
            "copied_special": special,
            "made": len(found.made),
            "unused": found.size - int(copied.sum()) - len(found.made),
        },
        "norms": {name: {**asdict(norms), "ratio": norms.ratio} for name, norms in done.norms.items()},
        "left": dict(done.left),
    }


def _tokenizer(name: str) -> Tokenizer:
    source = source_of(HuggingFaceStudent(model=name))
    return load_tokenizer(source.model, **source.arguments)


def _donor(name: str, new: Tokenizer) -> Donor:
    """`SpecError` where the donor's tokens are others than the new tokenizer's."""
    tokens, own = token_bytes(new), token_bytes(_tokenizer(name))
    common = min(len(tokens.spelled), len(own.spelled))
    if tokens.spelled[:common] != own.spelled[:common]:
        raise SpecError(f"--donor {name} has another tokenizer than {new.folder}: name a model that has this one")
    return Donor(load_causal_lm(HuggingFaceStudent(model=name)), own)


def _warn(done: Transplanted) -> None:
    for name, norms in done.norms.items():
        if norms.ratio is not None and abs(norms.ratio - 1) > ALIKE:
            say(f"the made rows of the {name} matrix are {norms.ratio:.2f} times as long as copied ones (--rescale evens that)")


def _model_card(about: dict[str, Any]) -> str:
    tokens = about["tokens"]
    by = f", by {about['donor']}" if about["donor"] else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [limbeck, tokenizer-transplant]
---
# {Path(about["model"]).name} with the tokenizer of {Path(about["tokenizer"]).name}

`{about["model"]}` with another tokenizer, by Limbeck, and not trained since: {tokens["copied"] + tokens["copied_special"]:,}
rows are the model's own, {tokens["made"]:,} are made (`{about["asked"]["method"]}`{by}). {TRANSPLANT} says more.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```
"""
