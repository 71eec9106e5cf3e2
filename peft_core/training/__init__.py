"""What stands around Trainer: batches, checkpoints, reports, and what makes a step fast."""
