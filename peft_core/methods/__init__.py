"""The fine-tuning methods, and the PEFT model that each makes of a base model."""
