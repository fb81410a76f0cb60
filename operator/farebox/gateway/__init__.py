"""The gateway's decision process. It runs beside an Envoy, decides each call, and ships the usage of calls.

    client -> Envoy -> ext_proc over a Unix socket -> Handler -> upstream; usage in Envoy's log -> meter

`interface` separates two halves. `ext_proc`, `envoy` and `metering` know Envoy and no rule; `handler` and the
packages that it uses know the rules and nothing of Envoy.
"""
