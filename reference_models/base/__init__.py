"""The base classes that method files inherit from."""
