"""Configuration: settings of the process, and ``headway.yaml``."""
