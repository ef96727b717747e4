"""Diffusion models of images: networks, objectives, training (ordinary and differentially private) and sampling.

Everywhere an image is a float tensor from -1 to 1, ``(n, channel, height, width)``, and noise is added to it without
scaling it down: ``x = image + sigma noise`` (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models", 2022, section 2). DDPM's variance-preserving process is the same with ``x_t = x / sqrt(1 + sigma^2)`` (their
table 1), so that both objectives share one loss, one sampler and one way to start from an image.
"""
