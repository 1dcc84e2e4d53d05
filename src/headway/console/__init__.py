"""The console: pages of the control plane for people. They show what is stored, and pass on what a person asks."""
