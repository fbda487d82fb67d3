"""From a PyTorch model to one checked ONNX graph, and tools to look into one."""
