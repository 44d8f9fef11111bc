"""Is this volume one that the model was made for?"""
