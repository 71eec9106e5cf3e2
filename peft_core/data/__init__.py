"""Labeled text from a file or the Hub: reading, column inference, audit, splits and tokenization."""
