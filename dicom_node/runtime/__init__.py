"""What keeps the node running: start-up, the lock, supervisor, scheduler, metrics, expiry of certificates."""
