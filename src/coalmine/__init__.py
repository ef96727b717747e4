"""Coalmine."""
