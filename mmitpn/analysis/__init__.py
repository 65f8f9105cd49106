"""What a model costs: multiply-adds, activation memory, speed against the machine's own peak.

Nothing is imported here: a process whose peak memory is measured takes only what it needs.
"""
