"""Comparison: causal, bidirectional and Echo readings of models side by side, and which of them to use."""
