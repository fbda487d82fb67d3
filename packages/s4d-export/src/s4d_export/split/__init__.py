"""The three graphs of SparseEnd2End's runtime."""
