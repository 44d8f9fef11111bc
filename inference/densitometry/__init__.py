"""Lung densitometry: how much of each lung is low attenuation, without a network and without weights."""
