"""Data: images and labels, where they come from, and how files are fetched and read without trusting them."""
