"""`make demo`: the main job on a real control plane, as a timeline that is checked step by step."""
