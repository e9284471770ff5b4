"""What is timed, against whom. Each module is a command: ``python -m benchmarks.reading``."""
