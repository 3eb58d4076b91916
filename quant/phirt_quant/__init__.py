"""Weight-only quantization, calibration and fidelity measurement for phirt bundles."""
