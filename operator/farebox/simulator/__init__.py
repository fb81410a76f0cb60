"""A stand-in for a model server: OpenAI-compatible, no GPU, no weights.

The samples use it without a GPU, and tests and benchmarks use it as an upstream. Its answers have no meaning,
but its `usage` is exact: input and output are counted by the rule in `tokens`, at the configured pace. It
never calls other services, stores data or checks keys.

`server` has the HTTP handlers, `engine` the answers, `tokens` the counting, `protocol` the requests, and
`reply` and `dialects` the formats of answers.
"""

from farebox.simulator.server import Profile, run, serving

__all__ = ["Profile", "run", "serving"]
