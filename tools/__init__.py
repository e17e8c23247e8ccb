"""What makes and tries the project, outside of the package that is installed."""
