"""What can be asked for: recipes and studies as frozen pydantic models. Imports neither torch nor transformers."""
