r"""The chats of the small mixture-of-experts study, from a teacher's answers at three efforts.

    python lab/prune_data.py prompts -o out/moe && head -360 out/moe/prompts.jsonl > some && mv some out/moe/prompts.jsonl
    limbeck teach-text lab/moe-traces.yaml
    python lab/moe_data.py out/moe/taught/completions.jsonl -o out/moe

SmolLM2-135M-Instruct does not reason before it answers. What it was asked to think through is taken for a trace: all but the
last sentence of an answer, which stays as the answer. A tenth of the prompts, by a hash of what is asked, is held out with
all its answers.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HELD_OUT_IN = 10


def with_trace(chat: Mapping[str, Any]) -> dict[str, Any]:
    """The chat with the assistant's `thinking` and `content` apart, where the answer has more than a sentence."""
    *before, answer = chat["messages"]
    sentences = re.split(r"(?<=[.!?])\s+", answer["content"].strip())
    told = {"role": "assistant", "content": sentences[-1]}
    if len(sentences) > 1 and chat["reasoning_effort"] != "low":
        told["thinking"] = answer["content"].strip()[: -len(sentences[-1])].rstrip()
    else:
        told["content"] = answer["content"].strip()
    return {"messages": [*before, told], "reasoning_effort": chat["reasoning_effort"]}


def is_held_out(chat: Mapping[str, Any]) -> bool:
    """Whether what is asked is held out."""
    asked = chat["messages"][0]["content"].encode()
    return int.from_bytes(hashlib.sha256(asked).digest()[:4], "big") % HELD_OUT_IN == 0


def _write(path: Path, chats: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    print(path, len(chats))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("completions", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    lines = arguments.completions.read_text(encoding="utf-8").splitlines()
    chats = [with_trace(json.loads(line)) for line in lines]
    _write(arguments.output / "train" / "chats.jsonl", [chat for chat in chats if not is_held_out(chat)])
    _write(arguments.output / "heldout" / "chats.jsonl", [chat for chat in chats if is_held_out(chat)])


if __name__ == "__main__":
    main()
