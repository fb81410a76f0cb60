"""The types of conditions. docs/reference explains their reasons.

GitOps tools, alerts and scripts read these names. Names may be added but never changed.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of conditions. Ready, Reconciling and Stalled follow the kstatus rules."""

    READY = "Ready"
    """The cluster matches the spec."""
    SERVING = "Serving"
    """InferenceService: calls are accepted."""
    RECONCILING = "Reconciling"
    """The operator, or the cluster, is working towards the spec."""
    STALLED = "Stalled"
    """A person has to act."""
    DEFAULT_SERVICES = "DefaultServices"
    """BillingAccount: all Default services that it selects exist."""
    LOW_BALANCE = "LowBalance"
    """BillingAccount: less is available than spec.lowBalance."""
