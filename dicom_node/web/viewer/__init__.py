"""Pictures of stored series for a browser."""
