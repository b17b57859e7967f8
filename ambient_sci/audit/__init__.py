"""What a prior gives away of the scans that it learned from: copies, and membership."""

from ambient_sci.audit.dino import Dino, load_dino
from ambient_sci.audit.membership import Membership, infer_membership
from ambient_sci.audit.result import PriorAudit
from ambient_sci.audit.run import audit_prior

__all__ = ["Dino", "Membership", "PriorAudit", "audit_prior", "infer_membership", "load_dino"]
