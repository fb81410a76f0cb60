"""The types of conditions. What their reasons mean is in docs/reference.

The names are read by GitOps tools, alerts and people's scripts: they are never changed, only added to.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of conditions. Ready, Reconciling and Stalled follow the kstatus rules."""

    READY = "Ready"
    """The cluster is as the spec asks."""
    SERVING = "Serving"
    """InferenceService: calls are accepted."""
    RECONCILING = "Reconciling"
    """The operator, or the cluster, is on its way to what the spec asks."""
    STALLED = "Stalled"
    """Nothing will get better until somebody acts."""
    DEFAULT_SERVICES = "DefaultServices"
    """BillingAccount: its Default services exist, all that it selects."""
    LOW_BALANCE = "LowBalance"
    """BillingAccount: less is available than spec.lowBalance."""
