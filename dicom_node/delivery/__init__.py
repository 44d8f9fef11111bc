"""The outbox at work: sending, backing off, storage commitment."""
