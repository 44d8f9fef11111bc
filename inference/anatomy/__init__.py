"""What a chest CT shows by its pixels alone: the body, the air-filled lungs, the airways; no network."""
