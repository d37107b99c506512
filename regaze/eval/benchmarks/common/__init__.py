"""What benchmarks share: items and scores, files and downloads, rules for reading answers."""
