"""Android: onnxruntime's AAR on the CPU. NNAPI, XNNPACK and the GPU's providers have none of the fused
operators, so that graphs would be cut in pieces and run slower than on the CPU, whose kernels use its dot
products.
"""

from __future__ import annotations

from phirt_export.mobile.profile import APP_DRIVER, APP_GUIDE, MobileProfile

PROFILE = MobileProfile(
    name="android",
    title="Android",
    memory_share=0.5,
    library="onnxruntime-android 1.29 or newer (the whole AAR, or one built with required_operators.config)",
    driver=APP_DRIVER.format(host="apps/android"),
    guide=APP_GUIDE,
)
