"""Teachers: causal language models that say, for every position of a document, what they expect next."""
