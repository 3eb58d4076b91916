"""Runs multimodal models on onnxruntime: offline, fast, private."""
