"""wsolbench's metrics in the frameworks of others. Each module needs the library that it is called by."""
