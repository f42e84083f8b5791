"""Taking parts out of a model that exists: what matters least goes, and what stays is one model again."""
