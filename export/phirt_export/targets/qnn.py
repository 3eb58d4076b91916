"""Qualcomm's NPUs (Hexagon Tensor Processor), in phones and in laptops with Windows on ARM, through
onnxruntime-qnn: graphs of one size in standard operators, in whole numbers throughout.

The HTP takes weights of 8 bits with a scale for each output, and of 4 bits in blocks whose scales are whole
numbers from 1 to 15 times one for the output; onnxruntime's own operators for attention, norms with a sum,
and blocks it does not take. Chips and their numbers are those of Qualcomm's AI Engine Direct SDK.
"""

from __future__ import annotations

from phirt_export.targets.profile import TargetProfile
from phirt_export.variants.sizes import StaticDefaults


def _chip(architecture: int, model: int) -> dict[str, str]:
    return {"htp_arch": str(architecture), "soc_model": str(model)}


PROFILE = TargetProfile(
    "Qualcomm NPUs: 8 or 4 bit weights, 16 bit activations, graphs of one size",
    providers=("QNNExecutionProvider",),
    activations=16,
    static=StaticDefaults(),
    compiles_for={
        "sm8450": _chip(69, 36),  # Snapdragon 8 Gen 1
        "sm8550": _chip(73, 43),  # 8 Gen 2
        "sc8380xp": _chip(73, 60),  # X Elite
        "sm8650": _chip(75, 57),  # 8 Gen 3
        "sm8750": _chip(79, 69),  # 8 Elite
        "sm8850": _chip(81, 87),  # 8 Elite Gen 5
    },
)
