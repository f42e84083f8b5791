"""From texts to batches: documents, tokenizers, the token store, packing, the loader."""
