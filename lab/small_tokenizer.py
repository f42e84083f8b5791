"""A small byte-level BPE tokenizer of a recipe's training texts, by default the quickstart's, as a Hugging Face folder.

With a vocabulary of a few thousand a small student's parameters are in its body, where architectures and optimizers differ.

    python lab/small_tokenizer.py out/bpe-4096 --size 4096
"""

import argparse

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from limbeck.data.texts import read_documents
from limbeck.spec.load import load_recipe

END = "<|end|>"


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=4096, help="ids, the one special token among them")
    parser.add_argument("--recipe", default="quickstart", help="whose training texts it is made of")
    arguments = parser.parse_args()
    backend = ByteLevelBPETokenizer()
    texts = (document.text for document in read_documents(load_recipe(arguments.recipe).data.train))
    backend.train_from_iterator(texts, vocab_size=arguments.size, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, eos_token=END, bos_token=END)
    tokenizer.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {len(tokenizer)} ids")


if __name__ == "__main__":
    main()
