"""`farebox statement` and `farebox usage`: reports of the meter as tables, JSON or CSV.

They use the meter's HTTP API and never the database, so the caller's rights apply.
"""
