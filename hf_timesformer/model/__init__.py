"""The network. Closed: a file here imports only its neighbours, as `from .name import x` (see
`remote_code`)."""
