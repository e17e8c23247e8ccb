"""The packaged model: a small causal Llama trained by our own clm stage. `build.py` made it; README.md is its card."""
