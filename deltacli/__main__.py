"""`python -m deltacli` is `deltavlm`."""

from deltacli.main import app

app(prog_name="deltavlm")
