"""What may go wrong, made to go wrong."""
