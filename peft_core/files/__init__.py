"""Files and folders that appear whole or not at all, their manifests, and typed records on disk."""
