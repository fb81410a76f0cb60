"""What a caller can look up with its API key: models, the key itself, usage and calls (B31, B32).

`lookups` answers the paths, `queries` reads their parameters, `views` writes their JSON, and `report_cache`
protects the meter. Nothing here decides about a call.
"""
