"""ONNX models on fastconv's kernels: ``prepare(model).run([x])``."""
