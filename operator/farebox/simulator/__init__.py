"""A stand-in for a model server: OpenAI-compatible, no GPU, no weights.

The samples run it where there is no GPU, and tests and benchmarks use it as an upstream. It answers with
words that mean nothing, but its `usage` is honest: the text it was given and the text it gave, counted by
the rule in `tokens`, at the pace that was asked for. It never calls anything, stores anything or checks keys.

`server` is the HTTP side, `engine` what a model would do, `tokens` the counting, `protocol` the requests.
"""

from farebox.simulator.server import Profile, run, serving

__all__ = ["Profile", "run", "serving"]
