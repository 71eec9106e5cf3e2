"""Load, run, calibrate and explain the models of a run."""
