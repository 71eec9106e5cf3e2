"""The Inference tab: texts, files, calibration, explanations and exports of the picked run."""
