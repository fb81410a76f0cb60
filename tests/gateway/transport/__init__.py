"""The transport half of the gateway, with a real Envoy, the real simulator and a real ledger."""
