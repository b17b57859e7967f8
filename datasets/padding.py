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
        Lengths from one power of two to the next, evenly spaced: no more than about one in ``steps`` is added. With
        0 the length stays what it is.

    Returns
    -------
    int
        The next of :math:`o + k \lceil o / \text{steps} \rceil` and :math:`2 o`, where :math:`o` is the power of two
        below.

    Raises
    ------
    DataError
        If the length is less than 1 or the steps are less than 0.
    """
    if length < 1 or steps < 0:
        raise DataError(f"a length of 1 or more has 0 or more steps per octave, got {length} and {steps}")
    octave = 1 << (length.bit_length() - 1)
    if steps == 0:
        return length
    step = -(-octave // steps)
    return min(2 * octave, octave - (octave - length) // step * step)
