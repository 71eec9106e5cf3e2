"""The Inference tab: a text, a file, and whether to trust the answers."""
