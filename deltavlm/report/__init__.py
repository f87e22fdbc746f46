"""Report of an output: a self-contained HTML page and a PNG quicklook."""
