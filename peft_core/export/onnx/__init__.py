"""ONNX export of a run: graph, evaluation and report."""
