"""Ratios of this package's kernels to what a user would take instead, measured side by side in one run."""
