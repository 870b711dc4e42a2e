"""From a file to `pixel_values`. Closed: a file here imports only its neighbours, as
`from .name import x`.
"""
