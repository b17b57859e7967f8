r"""Lengths that many scans share.

Scans of a store that differ in their number of samples are kept in groups of one length each. Measured lengths differ
by a few samples from scan to scan; rounded up to one of a few lengths per octave, most fall together, and what fills
them up are samples of weight zero, which operators take as not measured.
"""

from ambient_sci.errors import DataError

__all__ = ["padded_length"]


def padded_length(length: int, steps: int = 8) -> int:
    r"""Round a length up to the next of a few per octave.

    Parameters
    ----------
    length
        Number of samples, 1 or more.
    steps
        Lengths from one power of two to the next, evenly spaced: at most a part ``1 / steps`` is added. With 0 the
        length stays what it is.

    Returns
    -------
    int
        The smallest multiple of :math:`2^{\lfloor \log_2 n \rfloor} / \text{steps}` (and of one) that is not below it.

    Raises
    ------
    DataError
        If the length is less than 1 or the steps are less than 0.
    """
    if length < 1 or steps < 0:
        raise DataError(f"a length of 1 or more has 0 or more steps per octave, got {length} and {steps}")
    octave = 1 << (length.bit_length() - 1)
    if steps == 0 or octave < steps:
        return length
    # the first of octave * (steps + k) / steps, rounded up to a whole number, that holds the length
    k = -(-(length - octave) * steps // octave)
    return -(-octave * (steps + k) // steps)
