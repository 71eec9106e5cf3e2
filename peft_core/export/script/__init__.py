"""A run as one script in plain transformers, PEFT and datasets."""
