"""`farebox statement` and `farebox usage`: what the meter says about money, as tables for people.

It asks the meter over HTTP and never reads a ledger's database, so the rights of whoever asks hold.
"""
