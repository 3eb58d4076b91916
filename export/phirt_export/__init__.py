"""Checkpoints, the torch reference model, training and ONNX graphs: what turns weights into a bundle."""
