"""The gateway's decision process: it stands beside an Envoy, decides each call, and ships what calls used.

    client -> Envoy -> ext_proc over a Unix socket -> a Handler -> upstream; usage in Envoy's log -> meter

`exchange` is the narrow place between the two halves. On one side `http2`, `extproc`, `server`, `envoy`,
`usage` and `outbox` know Envoy and no rule; on the other the handler knows the rules and nothing of Envoy.
"""
