"""The `pixelize` command."""
