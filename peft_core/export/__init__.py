"""What a person takes away from a run, each way in a file of its own."""
