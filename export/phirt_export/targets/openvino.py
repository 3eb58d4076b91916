"""Intel's NPUs, and its GPUs and CPUs, through OpenVINO: the graphs of one size that `qnn` has, with weights
of 8 or 4 bits and floats between nodes, norms and rotations in elementary operators.
"""

from __future__ import annotations

from phirt_export.targets.passes import elementary
from phirt_export.targets.profile import TargetProfile
from phirt_export.variants.sizes import StaticDefaults

PROFILE = TargetProfile(
    "Intel NPUs, GPUs and CPUs by OpenVINO: 8 or 4 bit weights, graphs of one size",
    providers=("OpenVINOExecutionProvider",),
    passes=(elementary.RULES,),
    static=StaticDefaults(),
)
