"""What a checkpoint computes on a user's own text, images and recordings, for quantization by it."""

from phirt_export.calibration.hessians import HESSIAN_TOKENS, Hessians
from phirt_export.calibration.kv_scales import RANGE_TOKENS, kv_scales
from phirt_export.calibration.samples import OWN_TEXT, Sample, fingerprint, read_samples
from phirt_export.calibration.sensitivity import Costs, MatrixRows, rounding_costs, sensitivity_tokens
from phirt_export.calibration.sequences import Sequence, encode_samples, own_samples, thinned
from phirt_export.calibration.stream import LayerStream

__all__ = [
    "HESSIAN_TOKENS",
    "OWN_TEXT",
    "RANGE_TOKENS",
    "Costs",
    "Hessians",
    "LayerStream",
    "MatrixRows",
    "Sample",
    "Sequence",
    "encode_samples",
    "fingerprint",
    "kv_scales",
    "own_samples",
    "read_samples",
    "rounding_costs",
    "sensitivity_tokens",
    "thinned",
]
