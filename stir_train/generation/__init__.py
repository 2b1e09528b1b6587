"""Generation under control: `backend` is the protocol, `controller` what decides, `control_hook` the pass.

`open` starts a backend, of which `transformers` is one. To add a backend, give it a package here and a
line in ``config/backends.py``; to add a controller, implement `Controller` anywhere.
"""
