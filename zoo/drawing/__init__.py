"""Drawings of architectures, from their Specs alone: what to draw (a tree), where (a scene), and files of it."""
