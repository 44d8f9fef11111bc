"""What results become for systems other than a PACS, one small module for each kind of destination."""
