"""Folders of captioned media: reading, checking and making them."""
