"""Farebox: sells LLM inference on one's own Kubernetes cluster."""

__version__ = "0.1.0"
