"""What ``tools/analysis/gpu_report.py`` measures: each row of the report is a function that returns its figures."""
