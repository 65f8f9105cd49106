"""Token reduction compared: methods, sweep, traces, training runs."""
