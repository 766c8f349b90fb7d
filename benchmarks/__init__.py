"""Ratios of this package's kernels to the alternatives of a user, measured side by side in one run."""
