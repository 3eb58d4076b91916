"""`phirt bench`: what a bundle does on this machine, and how far that is from what the machine can do.

`speed` and `opening` measure the bundle, `peaks` the machine, `work` counts what a token costs (from the
graph that `onnx_graph` reads), `report` shows it all and `measure` runs it.
"""
