"""A real Kubernetes control plane for tests and the demo, without Docker; kind and other clusters alike.

    with Plane.start(nodes=3) as plane:
        plane.kubectl("get", "nodes")

See README.md beside this file.
"""

from .cluster import Cluster
from .errors import KubectlError, PlaneError
from .kwok import HOLD_ANNOTATION
from .plane import Plane

__all__ = ["HOLD_ANNOTATION", "Cluster", "KubectlError", "Plane", "PlaneError"]
