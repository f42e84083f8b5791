"""How well students predict a parent's answers, prompt and template given: nats per token of held-out chats' last messages.

    python lab/prune_answers.py out/prune/heldout/chats.jsonl out/prune-study/runs/*/student

A chat's template and system prompt are the same in every chat: a student that is trained on the text learns them by heart, and
bits per byte of whole chats tell little else.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from limbeck.evals.answer_nats import continuation_nats
from limbeck.evals.chat import chat_text, plain_tokens, stop_ids
from limbeck.evals.subject import EvalModel, open_model


def rows(model: EvalModel, path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompt, and answer with its stop token, of every chat."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        prompt = plain_tokens(model.tokenizer, chat_text(model.tokenizer, messages[:-1], answers=True))
        whole = plain_tokens(model.tokenizer, chat_text(model.tokenizer, messages, answers=False))
        ends = np.flatnonzero(np.isin(whole, stop_ids(model)))
        found.append((prompt, whole[len(prompt) : ends[-1] + 1]))
    return found


def main() -> None:
    """A line for each student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats", type=Path)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    for name in given.models:
        model = open_model(name, name, heldout=None, teacher=None)
        pairs = rows(model, given.chats)
        nats = continuation_nats(model.reader, pairs)
        tokens = sum(len(answer) for _, answer in pairs)
        print(f"{name}: {sum(nats) / tokens:.4f} nats/token over {tokens} tokens of {len(pairs)} answers", flush=True)


if __name__ == "__main__":
    main()
