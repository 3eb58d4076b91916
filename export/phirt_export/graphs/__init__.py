"""ONNX graphs of a Phi-4-multimodal-class model, written node by node: no tracing, so each graph reads like
the model.
"""
