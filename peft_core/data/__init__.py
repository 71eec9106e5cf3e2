"""Labelled text from a file or the Hub: read, its columns found, audited, split, made ready to train on."""
