"""Notifications to people and programs, by rule: mail and webhook."""
