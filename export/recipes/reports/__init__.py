"""The recipes of published reports: Phi-4, Phi-3, Phi-4-multimodal and Kimi-VL. Each is a TOML file; one code
writes the data of all of them.
"""
