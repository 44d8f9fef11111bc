"""The index (SQLAlchemy), the stored files, and the rules by which their state moves."""
