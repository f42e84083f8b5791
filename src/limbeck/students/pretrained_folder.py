"""Pretrained students as Hugging Face folders: what `AutoModelForCausalLM` opens with equal logits, an adapter merged.

The folder is what transformers writes of the model (config.json, safetensors, its generation settings, code that came with it),
with the tokenizer's files and a model card; config.json holds the spec under `limbeck_student`. An adapter is in `adapter/`
besides, for `peft.PeftModel` upon the first model.
"""

from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.spec.pretrained_student import HuggingFaceStudent
from limbeck.students.causal_lm import transformers_quiet
from limbeck.students.hf import copy_tokenizer, published
from limbeck.students.pretrained import PretrainedStudent

ADAPTER = "adapter"
PRUNING = "pruning.json"
"""What went and what stayed, in the folder of a pruned model and in that of a student that began as one."""


def save_pretrained(
    student: PretrainedStudent,
    *,
    spec: HuggingFaceStudent,
    folder: Path,
    tokenizer_folder: Path | None = None,
    pruning: str | None = None,
) -> None:
    """Write `student` to `folder`, replacing what is there. Its adapter, where it has one, is merged first.

    `pruning` is the text of the pruning.json of the pruned model that it began as, where it began so: it goes along.
    """
    student.settle()
    with published(folder) as partial:
        student.causal_lm.config.limbeck_student = spec.model_dump(mode="json")
        with transformers_quiet(f"{folder} cannot be written", error=LimbeckError):
            student.causal_lm.save_pretrained(partial)
            if student.trained_adapter is not None:
                student.trained_adapter.save(partial / ADAPTER)
        if tokenizer_folder is not None:
            copy_tokenizer(tokenizer_folder, partial)
        if pruning is not None:
            (partial / PRUNING).write_text(pruning, encoding="utf-8")
        (partial / "README.md").write_text(_model_card(student, spec=spec, name=folder.name), encoding="utf-8")


def _model_card(student: PretrainedStudent, *, spec: HuggingFaceStudent, name: str) -> str:
    total = sum(parameter.numel() for parameter in student.parameters())
    how, adapter = "all of it", ""
    pruned = "" if spec.prune is None else f" pruned ({PRUNING} says what went),"
    if spec.adapter is not None:
        how = f"through an adapter ({spec.adapter.kind}, rank {spec.adapter.rank}), which is merged into the weights"
        adapter = f"""
The adapter alone, for the model that it was trained beside{" (this one is before it was pruned)" if pruned else ""}:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{spec.model}"), "path/to/{name}/{ADAPTER}")
```
"""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [limbeck, distillation]
---
# {name}

A language model (`{type(student.causal_lm).__name__}`, {total:,} parameters): `{spec.model}`,{pruned} trained further with
Limbeck, {how}.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/{name}")
```
{adapter}"""
