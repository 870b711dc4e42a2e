"""Official checkpoints in, ONNX out."""
