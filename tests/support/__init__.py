"""What the demo, the benchmarks and the integration tests share: a client, Farebox on a cluster, waiting."""
