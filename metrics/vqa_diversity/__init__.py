"""VQA diversity as a module of ``evaluate``; see README.md in this folder."""
