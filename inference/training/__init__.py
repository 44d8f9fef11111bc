"""The paper's training method: unsupervised lung masks, augmentation, and both training loops."""
