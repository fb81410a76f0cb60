"""`farebox statement`, `usage`, `calls` and `refusals`: reports of the meter as tables, JSON or CSV.

They use the meter's HTTP API and never the database, so the caller's rights apply.
"""

TIME_FORMS = "today, yesterday, now, 7d or 12h ago, 2026-03, 2026-03-01, or RFC 3339"
