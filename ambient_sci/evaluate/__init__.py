"""How good reconstructions and their error bars are, where the image is known."""

from ambient_sci.evaluate.metrics import (
    coverage,
    coverage_interval,
    coverage_normal,
    head_mask,
    nrmse,
    psnr,
    score,
    ssim,
    table,
)

__all__ = [
    "coverage",
    "coverage_interval",
    "coverage_normal",
    "head_mask",
    "nrmse",
    "psnr",
    "score",
    "ssim",
    "table",
]
