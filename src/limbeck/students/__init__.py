"""Students: model families written out in full, their initialisation, and their passage to and from Hugging Face folders."""
