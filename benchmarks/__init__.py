"""What Virtfleet costs: `python -m benchmarks` prints tables and writes bench-results/*.json."""
