"""Layouts in which other systems keep their models: a file a family, read as a table; nothing here is a pipeline."""
