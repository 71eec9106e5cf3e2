"""A run as ONNX: its graph, what judges it, and what it says of itself."""
