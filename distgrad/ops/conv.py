"""Convolutions of one, two and three dimensions."""
