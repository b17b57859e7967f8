r"""Reconstruction: posterior samples of every scan, summarised, with where they came from.

The result is an xarray Dataset in the instrument's units, one row a scan:

===================== ================================== ==============================================================
``sample``            (scan, draw, channel, [z,] y, x)   posterior samples, unless they are not wanted
``mean``              (scan, channel, [z,] y, x)         their mean, the estimate with the least expected squared error
``std``               (scan, channel, [z,] y, x)         posterior standard deviation, of real and imaginary part
                                                         together
``lower``, ``upper``  (scan, channel, [z,] y, x)         90% credible interval of the magnitude (of the value, for real
                                                         images)
``quantile``          (scan, probability, channel, ...)  quantiles of the same, where probabilities are given
``residual``          (scan, draw)                       misfit of each sample in units of the noise
``effective_samples`` (scan,)                            independent samples that the mean is worth
===================== ================================== ==============================================================

Images of several shapes are the groups ``size_0``, ``size_1``, ... of a DataTree, each of which is such a Dataset.

`summary` has the formulas, `pieces` what is done at once, `output` how results are kept, `cluster` how work is shared.
"""

from ambient_sci.reconstruction.output import datasets_of, open_reconstruction
from ambient_sci.reconstruction.run import reconstruct
from ambient_sci.reconstruction.source import scan_coords
from ambient_sci.reconstruction.summary import INTERVAL, summarise

__all__ = ["INTERVAL", "datasets_of", "open_reconstruction", "reconstruct", "scan_coords", "summarise"]
