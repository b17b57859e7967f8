r"""Can these measurements be learned from? Answered from the operators and the data alone, before any training.

**The condition.** Let :math:`\tilde A = B A` be a scan's operator after the further corruption of the training
(`LinearOperator.thin`). Ambient Diffusion (Daras et al. 2023, arXiv:2305.19256, theorem 4.1) learns
:math:`E[x_0 \mid \tilde A, \tilde A x_s]` if

.. math:: E[A^H A \mid \tilde A] \text{ has full rank for every } \tilde A,

since the gradient of its loss is that matrix times the error: directions in its null space are never corrected.
`ambient_sci.check.coverage` estimates its smallest eigenvalue.

**What it costs.** A direction that no scan measures is no loss where there is no signal. So the verdict weighs
directions with the signal's power, which the measurements themselves tell (`ambient_sci.check.gaussian`): of the energy
that a typical scan leaves unknown, which a prior is meant to fill in, the *starved* part is in directions that all
scans together do not determine. A prior that has to invent half of what it is asked for is not worth its training,
whatever the method: that is refused. One fixed mask for all scans is the extreme, where both are the same directions.

**Together.** Frequencies that are each measured often, but never in one scan, leave open how they go together. For the
lines of masks such pairs are counted too.
"""

from ambient_sci.check.group_report import GroupReport
from ambient_sci.check.report import CheckReport
from ambient_sci.check.run import check, reason_to_refuse

__all__ = ["CheckReport", "GroupReport", "check", "reason_to_refuse"]
