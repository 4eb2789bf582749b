"""DCL and its region confusion."""
