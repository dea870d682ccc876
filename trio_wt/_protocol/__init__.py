"""The protocols as pure objects: no Trio, no sockets, no clock."""
