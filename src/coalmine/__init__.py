"""Coalmine: how much does a model trained on synthetic data leak about the private data behind it?"""
