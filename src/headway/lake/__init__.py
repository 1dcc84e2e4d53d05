"""The data lake: files in folders and object stores, listed, read and parsed into sections."""
