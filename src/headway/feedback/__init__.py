"""Takes feedback and reports: attributes, checks, and keeps them before it says so."""
