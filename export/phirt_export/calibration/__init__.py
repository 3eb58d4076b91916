"""What a checkpoint computes on a user's own text, images and recordings, for quantization by it."""

from phirt_export.calibration.hessians import Hessians
from phirt_export.calibration.samples import Sample, fingerprint, read_samples
from phirt_export.calibration.sequences import Sequence, encode_samples

__all__ = ["Hessians", "Sample", "Sequence", "encode_samples", "fingerprint", "read_samples"]
