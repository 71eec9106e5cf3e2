"""Fine-tune, count, merge and try medium-size encoders: everything PEFT Workbench does, without a page."""
