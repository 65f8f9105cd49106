"""What a model costs: multiply-adds, activation memory, and speed against the machine's own matrix product.

Nothing is imported here: a process whose peak memory is measured imports only what it needs.
"""
