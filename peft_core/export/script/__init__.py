"""Export of a run as one script in plain transformers, PEFT and datasets."""
