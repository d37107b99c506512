from .plan import AuditPlan as AuditPlan
from .plan import read_plan as read_plan
from .results import load_audit as load_audit
from .runner import audit as audit
