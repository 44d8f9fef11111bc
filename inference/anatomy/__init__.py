"""What the pixels alone show in a chest CT, without a network: the body, the air-filled lungs, the airways."""
