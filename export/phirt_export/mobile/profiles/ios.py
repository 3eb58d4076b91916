"""iOS: onnxruntime's xcframework on the CPU. CoreML has none of the fused operators and takes no blocks of 4
bits from onnxruntime.
"""

from __future__ import annotations

from phirt_export.mobile.profile import APP_DRIVER, APP_GUIDE, MobileProfile

PROFILE = MobileProfile(
    name="ios",
    title="iOS",
    memory_share=0.45,
    library="onnxruntime 1.29 or newer for iOS (onnxruntime.xcframework, or one built with "
    "required_operators.config)",
    driver=APP_DRIVER.format(host="apps/ios"),
    guide=APP_GUIDE,
)
