"""The operator's parts that live in memory: queue, caches' consequences, statuses, records, feed."""
