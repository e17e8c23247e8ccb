"""Checks of a data source, each reading chunks of rows once."""
