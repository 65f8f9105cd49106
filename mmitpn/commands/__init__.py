"""The commands of ``mmitpn COMMAND`` (see ``mmitpn/__main__.py``), which the scripts in ``tools/`` call too."""
