"""Training with transformers' Trainer: setup, batches, checkpoints, progress and step optimizations."""
