"""`python -m phirt`: the command line, for whom the script `phirt` is not on the path.

Hands over by name: the runtime imports no outer layer.
"""

import runpy

runpy.run_module("phirt_apps", run_name="__main__", alter_sys=True)
